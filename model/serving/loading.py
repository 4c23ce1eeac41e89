"""Model folders on disk, as diffusers writes them: read into a served model, and written.

    model_index.json                             which pipeline and classes
    unet/config.json                             `UNetConfig`
    unet/diffusion_pytorch_model.safetensors     the weights
    scheduler/scheduler_config.json              β schedule, prediction type, spacing, clipping
    model_card.json                              ours: labels, defaults, data, training

That is what is written; `model.checkpoints.folders` finds the files of other layouts too. Keys and shapes
are compared before a weight is used; there are never random weights in a served model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from denoised.model.checkpoints.atomic import write_atomically, write_text_atomically
from denoised.model.checkpoints.folders import MODEL_INDEX, SCHEDULER_CONFIG, UNET_CONFIG, find_files, read_json
from denoised.model.checkpoints.noise_settings import NoiseSettings
from denoised.model.checkpoints.weights import WEIGHTS, find_weights, read_weights
from denoised.model.diffusion.noise import NoiseSchedule, beta_ends
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.errors import CheckpointError
from denoised.model.networks.config import UNetConfig
from denoised.model.networks.score_network import ScoreUNet
from denoised.model.networks.unet import UNet
from denoised.model.serving.card import CARD_FILE, CardFile, Defaults, ModelCard, read_card_file
from denoised.model.serving.pixel_model import PixelModel

ZOO = Path(__file__).parents[1] / "zoo"


def load_model(
    folder: Path | str, *, device: str = "cpu", name: str | None = None, max_images: int = 16, numerics: str = ""
) -> PixelModel:
    """A served model from a diffusers folder.

    name: what requests call it; the folder's name if not given.

    Raises:
        CheckpointError: in one line that names the file, the key and the cause.
    """
    folder = Path(folder).resolve()
    files = find_files(folder)
    config = _unet_config(files.unet_config)
    noise = NoiseSettings.read(files.scheduler_config)
    card_file = read_card_file(folder)
    unet = _network(files.unet_config, config, noise.exploding)
    unet.load_state_dict(read_weights(find_weights(files.weights), unet.state_dict()), assign=True)
    schedule = noise.schedule
    _check_times(files.unet_config, config, schedule)
    labels, unconditional = _labels(folder, config, card_file)
    height, width = _size(files.unet_config, config)
    card = ModelCard(
        name=name or folder.name,
        width=width,
        height=height,
        channels=config.in_channels,
        labels=labels,
        unconditional=unconditional,
        timesteps=schedule.timesteps,
        prediction_type=noise.prediction_type,
        samplers=list(SAMPLERS),
        eta_samplers=[name for name, sampler in SAMPLERS.items() if sampler.takes_eta],
        karras_samplers=[name for name, sampler in SAMPLERS.items() if sampler.takes_karras],
        stages={name: sampler.stages for name, sampler in SAMPLERS.items() if sampler.stages > 1},
        default=_defaults(folder, card_file, noise.sampler, schedule),
        max_images=max_images,
        numerics=numerics,
    )
    return PixelModel(unet.to(device), schedule, noise.prediction_type, noise.grid(config), noise.clipping, card)


def save_model(
    folder: Path, config: UNetConfig, weights: Mapping[str, Tensor], scheduler: Mapping[str, Any], card: CardFile
) -> None:
    """Write a model folder; each file appears whole or not at all."""
    index = {
        "_class_name": "DDIMPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    unet = {"_class_name": "UNet2DModel", "_diffusers_version": "0.42.1", **config.to_dict()}
    for path in (UNET_CONFIG, SCHEDULER_CONFIG):
        (folder / path.parent).mkdir(parents=True, exist_ok=True)
    write_atomically(
        folder / UNET_CONFIG.parent / WEIGHTS, lambda path: save_file(dict(weights), path, metadata={"format": "pt"})
    )
    for name, content in ((MODEL_INDEX, index), (UNET_CONFIG, unet), (SCHEDULER_CONFIG, dict(scheduler))):
        write_text_atomically(folder / name, json.dumps(content, indent=2) + "\n")
    write_text_atomically(folder / CARD_FILE, card.model_dump_json(indent=2) + "\n")


def scheduler_config(
    beta_schedule: str, prediction_type: str, timesteps: int = 1000, *, zero_snr: bool = False
) -> dict[str, Any]:
    """`scheduler_config.json` of a model trained here: the sampling grid starts at the last timestep."""
    start, end = beta_ends(timesteps)
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.42.1",
        "num_train_timesteps": timesteps,
        "beta_schedule": beta_schedule,
        "beta_start": start,
        "beta_end": end,
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "rescale_betas_zero_snr": zero_snr,
    }


def _unet_config(path: Path) -> UNetConfig:
    raw = read_json(path)
    kind = raw.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise CheckpointError(f"{path}: _class_name = {kind!r} is not supported (supported: 'UNet2DModel')")
    try:
        config = UNetConfig.from_dict(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise CheckpointError(
            f"{path}: out_channels = {config.out_channels} is neither in_channels = {config.in_channels} "
            "nor twice that (a learned variance)"
        )
    if config.class_embed_type == "identity":
        raise CheckpointError(f"{path}: class_embed_type = 'identity' needs an embedding, which no request carries")
    return config


def _network(path: Path, config: UNetConfig, exploding: tuple[float, float, int] | None) -> UNet:
    """Without weights: none are drawn, for the global generator is a training run's."""
    try:
        with torch.device("meta"):
            return UNet(config) if exploding is None else ScoreUNet(config, *exploding)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _defaults(folder: Path, card: CardFile, own: str | None, schedule: NoiseSchedule) -> Defaults:
    """What the card says; where it says nothing, the sampler that the scheduler's file is of."""
    path, named = folder / CARD_FILE, card.default.model_fields_set
    if "sampler" in named and card.default.sampler not in SAMPLERS:
        raise CheckpointError(f"{path}: default.sampler = {card.default.sampler!r} is not offered")
    if "steps" in named and card.default.steps > schedule.timesteps:
        raise CheckpointError(f"{path}: default.steps is over the {schedule.timesteps} of training")
    sampler = card.default.sampler if "sampler" in named or own is None else own
    return card.default.model_copy(update={"sampler": sampler, "steps": min(card.default.steps, schedule.timesteps)})


def _check_times(path: Path, config: UNetConfig, schedule: NoiseSchedule) -> None:
    """A learned embedding of time has a row for every timestep."""
    rows = config.num_train_timesteps
    if config.time_embedding_type == "learned" and rows is not None and rows < schedule.timesteps:
        raise CheckpointError(f"{path}: num_train_timesteps = {rows}, but the scheduler has {schedule.timesteps}")


def _labels(folder: Path, config: UNetConfig, card: CardFile) -> tuple[list[str], bool]:
    """K names for K classes, and whether there is a class K that means "no label".

    The last of num_class_embeds means it, unless the card has a name for that one too.
    """
    if config.class_embed_type == "timestep":  # a label is a number, and the card alone knows of how many
        return card.labels, True
    classes = config.num_class_embeds or 0
    if classes and len(card.labels) == classes:
        return card.labels, False
    if card.labels and len(card.labels) != classes - 1:
        raise CheckpointError(
            f"{folder / CARD_FILE}: {len(card.labels)} labels, but the U-Net has {max(classes - 1, 0)} classes "
            "and the null class"
        )
    return card.labels or [str(k) for k in range(classes - 1)], True


def _size(path: Path, config: UNetConfig) -> tuple[int, int]:
    size = config.sample_size
    if size is None:
        raise CheckpointError(f"{path}: sample_size is missing")
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        raise CheckpointError(f"{path}: sample_size = {size!r} is neither a whole number nor two")
    height, width = sides
    for side in sides:
        if side < 1 or side % config.downscale:
            raise CheckpointError(f"{path}: sample_size {side} is no multiple of {config.downscale}")
    return height, width
