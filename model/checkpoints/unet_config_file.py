"""The U-Net's `config.json`, checked. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from denoised.model.checkpoints.bounded_files import read_json
from denoised.model.checkpoints.legacy import modernize_config
from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.config import UNetConfig

MAX_SIDE = 2048  # pixels


def read_unet_config(path: Path) -> UNetConfig:
    """The config of the U-Net in a file; keys of diffusers' first releases are understood.

    Raises:
        CheckpointError: for a key or a value that is not supported.
    """
    raw = read_json(path)
    kind = raw.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise CheckpointError(f"{path}: _class_name = {abbreviate(kind)} is not supported (supported: 'UNet2DModel')")
    try:
        config = UNetConfig.from_dict(modernize_config(raw))
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


def image_size(path: Path, config: UNetConfig) -> tuple[int, int]:
    """(height, width) in pixels, from a config.

    Raises:
        CheckpointError: if they are missing, out of range, or not divisible as the network needs.
    """
    size = config.sample_size
    if size is None:
        raise CheckpointError(f"{path}: sample_size is missing")
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        raise CheckpointError(f"{path}: sample_size = {abbreviate(size)} is neither a whole number nor a list of two")
    height, width = sides
    for side in sides:
        if side < 1 or side % config.downscale:
            value = abbreviate(side)
            raise CheckpointError(f"{path}: sample_size = {value} is not a positive multiple of {config.downscale}")
        if side > MAX_SIDE:
            raise CheckpointError(f"{path}: sample_size = {abbreviate(side)} is over {MAX_SIDE}")
    return height, width
