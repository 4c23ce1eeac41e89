"""The autoencoder of a single file: its config from names and shapes, and where its tensors are.

Source: `ldm.modules.diffusionmodules.model` of CompVis's latent-diffusion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from denoised.model.conversion.single_file import AUTOENCODER, Family, SingleFile
from denoised.model.conversion.tensor_source import Sources, TensorSource
from denoised.model.errors import CheckpointError
from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig

SCALING_FACTORS = {Family.SD1: 0.18215, Family.SD2: 0.18215, Family.SDXL: 0.13025}
ATTENTION_MODULES = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
# diffusers' names → the original ones, tried in this order.
MODULES = (
    (r"(encoder|decoder)\.mid_block\.resnets\.([01])\.", lambda m: f"{m[1]}.mid.block_{int(m[2]) + 1}."),
    (r"encoder\.down_blocks\.(\d+)\.resnets\.", lambda m: f"encoder.down.{m[1]}.block."),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", lambda m: f"encoder.down.{m[1]}.downsample."),
    (r"conv_norm_out", lambda m: "norm_out"),
    (r"conv_shortcut", lambda m: "nin_shortcut"),
)


def read_autoencoder_shapes(file: SingleFile, pixels: int) -> AutoencoderConfig:
    """The config of the autoencoder.

    pixels: along each side of the pictures that it was trained on.

    Raises:
        CheckpointError: for a network of another architecture.
    """
    levels = file.count(f"{AUTOENCODER}encoder.down.", ".block.0.conv1.weight")
    channels = [file.shape(f"{AUTOENCODER}encoder.down.{k}.block.0.conv1.weight")[0] for k in range(levels)]
    config = {
        "in_channels": file.shape(f"{AUTOENCODER}encoder.conv_in.weight")[1],
        "out_channels": file.shape(f"{AUTOENCODER}decoder.conv_out.weight")[0],
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": file.count(f"{AUTOENCODER}encoder.down.0.block.", ".conv1.weight"),
        "latent_channels": file.shape(f"{AUTOENCODER}decoder.conv_in.weight")[1],
        "sample_size": pixels,
        "scaling_factor": SCALING_FACTORS[file.family],
        "force_upcast": True,
    }
    try:
        return AutoencoderConfig.from_dict(config)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: the autoencoder is unlike any of {file.family}: {error}") from error


def autoencoder_sources(names: Iterable[str], config: AutoencoderConfig) -> Sources:
    """The origin of each tensor of the autoencoder's state dict."""
    levels = len(config.block_out_channels)
    return {name: TensorSource(f"{AUTOENCODER}{_original_name(name, levels)}") for name in names}


def _original_name(name: str, levels: int) -> str:
    for own, original in ATTENTION_MODULES.items():
        name = re.sub(rf"mid_block\.attentions\.0\.{re.escape(own)}\.", f"mid.attn_1.{original}.", name)
    for pattern, replacement in MODULES:
        name = re.sub(pattern, replacement, name)
    # The decoder's levels count from the highest resolution in the original, from the lowest in diffusers.
    if match := re.match(r"decoder\.up_blocks\.(\d+)\.", name):
        rest = name[match.end() :].replace("resnets.", "block.").replace("upsamplers.0.", "upsample.")
        return f"decoder.up.{levels - 1 - int(match[1])}.{rest}"
    return name
