"""Model folders on disk, in the layout of a diffusers pipeline.

    model_index.json                             which pipeline and classes
    unet/config.json                             `UNetConfig`
    unet/diffusion_pytorch_model.safetensors     the weights
    scheduler/scheduler_config.json              β schedule, prediction type, spacing, clipping
    model_card.json                              ours: labels, defaults, data, training

Only safetensors are read: no code comes from a file. Keys and shapes are compared before
a weight is used; there are never random weights in a served model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.card import CARD_FILE, CardFile, ModelCard, read_card_file
from model.config import UNetConfig
from model.denoiser import Clipping, PixelModel
from model.errors import CheckpointError
from model.grids import SPACINGS, VARIANCES, Grid
from model.noise import PREDICTION_TYPES, NoiseSchedule
from model.samplers import SAMPLERS
from model.unet import UNet

UNET_CONFIG = Path("unet/config.json")
WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")
SCHEDULER_CONFIG = Path("scheduler/scheduler_config.json")
MODEL_INDEX = Path("model_index.json")
# diffusers' schedulers for x_t = α·x_0 + σ·ε with α² + σ² = 1; what the others mean by their keys is something else.
SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
)
ZOO = Path(__file__).parent / "zoo"


def load_model(
    folder: Path, *, device: str = "cpu", name: str | None = None, max_images: int = 16, numerics: str = ""
) -> PixelModel:
    """A served model from a diffusers folder.

    name: what requests call it; the folder's name if not given.

    Raises:
        CheckpointError: in one line that names the file, the key and the cause.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder")
    config = _unet_config(folder)
    scheduler = _read_json(folder / SCHEDULER_CONFIG)
    card_file = read_card_file(folder)
    with torch.device("meta"):  # no weights are drawn: the global generator is a training run's
        unet = UNet(config)
    unet.load_state_dict(read_weights(folder / WEIGHTS, unet.state_dict()), assign=True)
    schedule = _schedule(folder, scheduler)
    labels = _labels(folder, config, card_file)
    height, width = _size(folder, config)
    prediction_type = _one_of(folder, scheduler, "prediction_type", PREDICTION_TYPES)
    card = ModelCard(
        name=name or folder.name,
        width=width,
        height=height,
        channels=config.in_channels,
        labels=labels,
        timesteps=schedule.timesteps,
        prediction_type=prediction_type,
        samplers=list(SAMPLERS),
        eta_samplers=[name for name, sampler in SAMPLERS.items() if sampler.takes_eta],
        two_stage_samplers=[name for name, sampler in SAMPLERS.items() if sampler.two_stage],
        default=card_file.default,
        max_images=max_images,
        numerics=numerics,
    )
    if card.default.sampler not in SAMPLERS:
        raise CheckpointError(f"{folder / CARD_FILE}: default.sampler = {card.default.sampler!r} is not offered")
    if card.default.steps > schedule.timesteps:
        raise CheckpointError(f"{folder / CARD_FILE}: default.steps is over the {schedule.timesteps} of training")
    return PixelModel(
        unet.to(device), schedule, prediction_type, _grid(folder, scheduler), _clipping(folder, scheduler), card
    )


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
    write_atomically(folder / WEIGHTS, lambda path: save_file(dict(weights), path, metadata={"format": "pt"}))
    for name, content in ((MODEL_INDEX, index), (UNET_CONFIG, unet), (SCHEDULER_CONFIG, dict(scheduler))):
        write_text_atomically(folder / name, json.dumps(content, indent=2) + "\n")
    write_text_atomically(folder / CARD_FILE, card.model_dump_json(indent=2) + "\n")


def scheduler_config(beta_schedule: str, prediction_type: str, timesteps: int = 1000) -> dict[str, Any]:
    """`scheduler_config.json` of a model trained here: the sampling grid starts at the last timestep."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.42.1",
        "num_train_timesteps": timesteps,
        "beta_schedule": beta_schedule,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
    }


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(temporary path)`, flush it to disk, then put it in place of `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write(temporary)
    temporary.chmod(0o666 & ~_umask())
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _umask() -> int:
    """The process' own; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text_atomically(path: Path, text: str) -> None:
    """The same for a short text."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: no JSON object")
    return content


def _unet_config(folder: Path) -> UNetConfig:
    path = folder / UNET_CONFIG
    raw = _read_json(path)
    kind = raw.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise CheckpointError(f"{path}: _class_name = {kind!r} is not supported (supported: 'UNet2DModel')")
    try:
        config = UNetConfig.from_dict(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if config.in_channels != config.out_channels:
        raise CheckpointError(
            f"{path}: out_channels = {config.out_channels} differs from in_channels = {config.in_channels}"
        )
    return config


def read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, after its keys and shapes were compared with those of the network."""
    if not path.exists():
        raise CheckpointError(f"{path}: missing")
    try:
        with path.open("rb") as start:
            if start.read(40).startswith(b"version https://git-lfs"):
                raise CheckpointError(f"{path}: is a Git LFS pointer, not the weights: run 'git lfs pull'")
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
            _compare_keys(path, shapes, {key: tuple(value.shape) for key, value in expected.items()})
            return {key: file.get_tensor(key).to(expected[key].dtype, copy=True) for key in keys}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: no whole safetensors file ({error})") from error


def _compare_keys(path: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    if missing := sorted(wanted.keys() - found.keys()):
        raise CheckpointError(f"{path}: lacks {missing[0]!r} ({len(missing)} tensor(s) missing)")
    if extra := sorted(found.keys() - wanted.keys()):
        raise CheckpointError(f"{path}: holds {extra[0]!r}, which the config has no place for ({len(extra)} extra)")
    for key in sorted(wanted):
        if found[key] != wanted[key]:
            raise CheckpointError(f"{path}: {key!r} has shape {found[key]}, the config asks for {wanted[key]}")


def _schedule(folder: Path, scheduler: Mapping[str, Any]) -> NoiseSchedule:
    path = folder / SCHEDULER_CONFIG
    _one_of(folder, scheduler, "_class_name", SCHEDULERS)
    for key in ("trained_betas", "rescale_betas_zero_snr", "thresholding"):
        if scheduler.get(key):
            raise CheckpointError(f"{path}: {key} = {scheduler[key]!r} is not supported yet")
    timesteps = int(_number(folder, scheduler, "num_train_timesteps", 1000, least=1))
    ends = [_number(folder, scheduler, "beta_start", 1e-4), _number(folder, scheduler, "beta_end", 0.02)]
    try:
        return NoiseSchedule.named(str(scheduler.get("beta_schedule", "linear")), timesteps, *ends)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _grid(folder: Path, scheduler: Mapping[str, Any]) -> Grid:
    # diffusers' DDPM and DDIM leave the spacing out of older files; both then mean "leading".
    return Grid(
        spacing=_one_of(folder, scheduler, "timestep_spacing", SPACINGS),
        steps_offset=int(_number(folder, scheduler, "steps_offset", 0)),
        set_alpha_to_one=_switch(folder, scheduler, "set_alpha_to_one"),
        variance_type=_one_of(folder, scheduler, "variance_type", VARIANCES),
    )


def _clipping(folder: Path, scheduler: Mapping[str, Any]) -> Clipping:
    limit = float(_number(folder, scheduler, "clip_sample_range", 1.0))
    return Clipping(limit if _switch(folder, scheduler, "clip_sample") else None)


def _number(folder: Path, scheduler: Mapping[str, Any], key: str, default: float, least: float = 0) -> float:
    """A finite number from `least` up, whole where the default is; diffusers' default when the file leaves it out."""
    value = scheduler.get(key, default)
    kinds = (int,) if isinstance(default, int) else (int, float)
    if type(value) not in kinds or not least <= value < math.inf:
        kind = "whole number" if kinds == (int,) else "number"
        raise CheckpointError(f"{folder / SCHEDULER_CONFIG}: {key} = {value!r} is no {kind} from {least} up")
    return float(value)


def _switch(folder: Path, scheduler: Mapping[str, Any], key: str) -> bool:
    """True or false; true, as in diffusers, when the file leaves it out."""
    value = scheduler.get(key, True)
    if not isinstance(value, bool):
        raise CheckpointError(f"{folder / SCHEDULER_CONFIG}: {key} = {value!r} is neither true nor false")
    return value


def _one_of(folder: Path, scheduler: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    """The value of a key, the first of those allowed when the file leaves it out (diffusers' default)."""
    value = scheduler.get(key, allowed[0])
    if value not in allowed:
        raise CheckpointError(
            f"{folder / SCHEDULER_CONFIG}: {key} = {value!r} is not supported (supported: {', '.join(allowed)})"
        )
    return str(value)


def _labels(folder: Path, config: UNetConfig, card: CardFile) -> list[str]:
    """K names for K classes; the last of num_class_embeds means "no label"."""
    classes = config.num_class_embeds - 1 if config.num_class_embeds is not None else 0
    if card.labels and len(card.labels) != classes:
        raise CheckpointError(
            f"{folder / CARD_FILE}: {len(card.labels)} labels, but the U-Net has {classes} classes and the null class"
        )
    return card.labels or [str(k) for k in range(classes)]


def _size(folder: Path, config: UNetConfig) -> tuple[int, int]:
    size = config.sample_size
    if size is None:
        raise CheckpointError(f"{folder / UNET_CONFIG}: sample_size is missing")
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        raise CheckpointError(f"{folder / UNET_CONFIG}: sample_size = {size!r} is neither a whole number nor two")
    height, width = sides
    for side in sides:
        if side < 1 or side % config.downscale:
            raise CheckpointError(f"{folder / UNET_CONFIG}: sample_size {side} is no multiple of {config.downscale}")
    return height, width
