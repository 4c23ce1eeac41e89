"""The U-Net's `config.json`, checked. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from denoised.model.bounded_files import read_json
from denoised.model.checkpoints.legacy import modernize_config
from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.unet.unet_config import UNetConfig

MAX_SIDE = 2048  # pixels
PICTURE_CHANNELS = (1, 3)  # gray and RGB
LATENT_CHANNELS = 4  # of the autoencoders of Stable Diffusion 1, 2 and XL


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
    _check_channels(path, config)
    if config.class_embed_type == "identity":
        raise CheckpointError(f"{path}: class_embed_type = 'identity' needs an embedding, which no request carries")
    return config


def _check_channels(path: Path, config: UNetConfig) -> None:
    """Refuse images that cannot be shown."""
    channels, outputs = config.in_channels, config.out_channels
    if channels not in PICTURE_CHANNELS:
        latents = (
            "; 4 channels are usually latents: a latent model needs its whole pipeline folder with the autoencoder "
            "(vae/) that decodes them, and this program serves pixel models alone"
        )
        raise CheckpointError(
            f"{path}: in_channels = {channels} cannot be shown as pictures (supported: 1, gray, and 3, RGB)"
            f"{latents if channels == LATENT_CHANNELS else ''}"
        )
    if outputs not in (channels, 2 * channels):
        raise CheckpointError(
            f"{path}: out_channels = {outputs} is neither in_channels = {channels} nor twice that (a learned variance)"
        )


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
