"""Read a model folder: every file is checked, alone and against the others, before a weight is used.

`model.checkpoints.folders` finds the files, `noise_settings` reads the scheduler's, `weights` the tensors,
`card_file` our own facts. A network never keeps random weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from denoised.model.checkpoints.card_file import CARD_FILE, CardFile, Defaults, LearnedLevels, read_card_file
from denoised.model.checkpoints.digest import model_digest
from denoised.model.checkpoints.folders import find_files
from denoised.model.checkpoints.labels import Classes, read_classes
from denoised.model.checkpoints.noise_settings import NoiseSettings
from denoised.model.checkpoints.unet_config_file import image_size, read_unet_config
from denoised.model.checkpoints.weight_files import find_weights
from denoised.model.checkpoints.weights import read_weights
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.samplers import CONSISTENCY, SAMPLERS, compile_plan
from denoised.model.errors import CheckpointError, PlanError
from denoised.model.networks.unet.score_network import ScoreUNet
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig

GIB = 1024**3


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, read and checked.

    Attributes:
        network: the U-Net with its weights, on the CPU.
        noise: the settings of the scheduler's file.
        schedule: the noise levels of training, T timesteps.
        classes: the names of its K classes, and whether there is an index K that means "no label".
        digest: see `model.checkpoints.digest`.
        image_size: (height, width) in pixels.
        default: the sampler, steps and guidance of a request that names none.
        card: the folder's own card.
    """

    network: UNet
    noise: NoiseSettings
    schedule: NoiseSchedule
    classes: Classes
    digest: str
    image_size: tuple[int, int]
    default: Defaults
    card: CardFile


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the model in a diffusers folder.

    Raises:
        CheckpointError: for anything missing, not understood or contradictory; one line that names
            the file, the key and the cause.
    """
    files = find_files(folder)
    config = read_unet_config(files.unet_config)
    sides = image_size(files.unet_config, config)
    noise = NoiseSettings.read(files.scheduler_config)
    card = read_card_file(folder)
    classes = read_classes(folder, card, config.num_class_embeds, config.class_embed_type)
    network = _build_network(files.unet_config, config, noise.variance_exploding)
    _check_memory(files.unet_config, network, sides)
    noise.check(config)
    schedule = noise.schedule
    _check_timestep_rows(files.unet_config, config, schedule)
    default = resolve_defaults(folder, card, noise.sampler, schedule, classes.unconditional)
    weights = read_weights(find_weights(files.weights), network.state_dict())
    network.load_state_dict(weights, assign=True)
    return Checkpoint(
        network=network,
        noise=noise,
        schedule=schedule,
        classes=classes,
        digest=model_digest(
            files.unet_config, files.scheduler_config, weights, classes, card.learned_levels, card.consistency_levels
        ),
        image_size=sides,
        default=default,
        card=card,
    )


def _build_network(path: Path, config: UNetConfig, variance_exploding: tuple[float, float, int] | None) -> UNet:
    """Build the network on the meta device: no weights are drawn, since a training run owns the global generator."""
    try:
        with torch.device("meta"):
            return UNet(config) if variance_exploding is None else ScoreUNet(config, *variance_exploding)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_memory(path: Path, network: UNet, sides: tuple[int, int]) -> None:
    """Refuse a network whose weights and widest layer do not fit into this machine's memory."""
    weights = sum(tensor.numel() for tensor in network.state_dict().values())
    height, width = sides
    channels = network.config.block_out_channels
    widest = max(count * (height >> level) * (width >> level) for level, count in enumerate(channels))
    needed, memory = 4 * (weights + 4 * widest), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise CheckpointError(
            f"{path}: needs {needed / GIB:.1f} GiB for one image; this machine has {memory / GIB:.1f} GiB of memory"
        )


def resolve_defaults(
    folder: Path, card: CardFile, matching: str | None, schedule: NoiseSchedule, unconditional: bool
) -> Defaults:
    """The card's defaults; without a sampler in the card, the one that matches the scheduler's file.

    Guidance is off for a model that cannot sample without a label.
    """
    path, named = folder / CARD_FILE, card.default.model_fields_set
    if "sampler" in named and card.default.sampler not in SAMPLERS:
        raise CheckpointError(f"{path}: default.sampler = {card.default.sampler!r} is not offered")
    if "steps" in named and card.default.steps > schedule.timesteps:
        raise CheckpointError(
            f"{path}: default.steps = {card.default.steps} is over the {schedule.timesteps} timesteps"
        )
    if card.consistency_levels:
        matching = CONSISTENCY
    sampler = card.default.sampler if "sampler" in named or matching is None else matching
    most = len(card.consistency_levels) if card.consistency_levels and "steps" not in named else schedule.timesteps
    changes: dict[str, object] = {"sampler": sampler, "steps": min(card.default.steps, most)}
    if not unconditional:
        changes |= {"guidance_scale": 1.0, "guidance_rescale": 0.0, "guidance_interval": None}
    default = card.default.model_copy(update=changes)
    _check_consistency_levels(path, card, default, schedule)
    _check_levels(path, default, schedule)
    _check_learned_levels(path, card.learned_levels, schedule)
    return default


def _check_consistency_levels(path: Path, card: CardFile, default: Defaults, schedule: NoiseSchedule) -> None:
    """Refuse levels that are not the schedule's, and defaults of another sampler with them or of theirs without."""
    levels, is_own = tuple(card.consistency_levels), default.sampler == CONSISTENCY
    if is_own != bool(levels):
        rule = "does not go with consistency_levels" if levels else "needs consistency_levels"
        raise CheckpointError(f"{path}: default.sampler = {default.sampler!r} {rule}")
    if not levels:
        return
    for steps in (len(levels), default.steps):
        try:
            compile_plan(CONSISTENCY, schedule, steps, Grid("trailing", consistency_levels=levels))
        except PlanError as error:
            raise CheckpointError(f"{path}: consistency_levels: {error}") from error


def _check_levels(path: Path, default: Defaults, schedule: NoiseSchedule) -> None:
    """Refuse noise levels that the sampler of the defaults does not visit on this schedule."""
    sigmas = tuple(default.sigmas) if default.sigmas is not None else None
    if sigmas is not None and len(sigmas) != default.steps:
        raise CheckpointError(f"{path}: default.steps = {default.steps}, but there are {len(sigmas)} default.sigmas")
    if all(value is None for value in (sigmas, default.spacing, default.sigma_min, default.sigma_max)):
        return
    if not SAMPLERS[default.sampler].takes_spacing:
        raise CheckpointError(f"{path}: default.sampler = {default.sampler!r} takes no noise levels")
    spaced = LevelChoice(default.spacing, None, default.sigma_min, default.sigma_max)
    for levels in (spaced, LevelChoice(sigmas=sigmas)):
        try:
            compile_plan(default.sampler, schedule, default.steps, levels.of(Grid("trailing")))
        except PlanError as error:
            raise CheckpointError(f"{path}: default: {error}") from error


def _check_learned_levels(path: Path, learned: Sequence[LearnedLevels], schedule: NoiseSchedule) -> None:
    """Refuse levels that their sampler does not visit on this schedule, and two lists for the same requests."""
    for index, each in enumerate(learned):
        where, steps = f"{path}: learned_levels.{index}", len(each.sigmas)
        if each.sampler not in SAMPLERS or not SAMPLERS[each.sampler].takes_spacing:
            raise CheckpointError(f"{where}.sampler = {each.sampler!r} is not a sampler that takes noise levels")
        if any(other.fits(each.sampler, steps) for other in learned[:index]):
            raise CheckpointError(f"{where} is the second list of {steps} levels for {each.sampler}")
        try:
            compile_plan(each.sampler, schedule, steps, LevelChoice(sigmas=tuple(each.sigmas)).of(Grid("trailing")))
        except PlanError as error:
            raise CheckpointError(f"{where}: {error}") from error


def _check_timestep_rows(path: Path, config: UNetConfig, schedule: NoiseSchedule) -> None:
    """A learned time embedding needs a row for every timestep."""
    rows = config.num_train_timesteps
    if config.time_embedding_type == "learned" and rows is not None and rows < schedule.timesteps:
        raise CheckpointError(f"{path}: num_train_timesteps = {rows}, but the scheduler has {schedule.timesteps}")
