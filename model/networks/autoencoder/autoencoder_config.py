"""The settings of the autoencoder between pixels and latents: the keys of `config.json`, checked.

Keys and defaults equal those of diffusers 0.42's `AutoencoderKL`. A config that asks for something
`model.networks.autoencoder.autoencoder` does not implement is refused by name; no key is ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.config_checks import (
    MAX_COUNT,
    MAX_LAYERS,
    MAX_LEVELS,
    ValueCheck,
    check_values,
    is_boolean,
    is_integer,
    is_integers,
    is_level_list,
    is_number,
    known_values,
    to_lists,
)
from denoised.model.networks.unet.unet_config import UNetConfig

# diffusers fixes it for the autoencoder's norms.
AUTOENCODER_NORM_EPS = 1e-6


MAX_LATENT_CHANNELS = 256
# Of the factors between the encoder's latents and the U-Net's; published ones lie between .1 and 5.
MIN_SCALE, MAX_SCALE = 1e-6, 1e6


def _is_per_channel(value: Any) -> bool:
    return value is None or (
        isinstance(value, tuple) and len(value) <= MAX_LATENT_CHANNELS and all(map(is_number, value))
    )


def _is_scale(value: Any) -> bool:
    return is_number(value) and MIN_SCALE <= value <= MAX_SCALE


AUTOENCODER_CHECKS: tuple[ValueCheck, ...] = (
    ValueCheck(("down_block_types", "up_block_types"), f"not a list of at most {MAX_LEVELS}", is_level_list),
    ValueCheck(
        ("block_out_channels",),
        f"not a list of whole numbers from 1 to {MAX_COUNT}, at most {MAX_LEVELS} of them",
        is_integers,
    ),
    ValueCheck(
        ("in_channels", "out_channels", "norm_num_groups", "sample_size"),
        f"not a whole number from 1 to {MAX_COUNT}",
        is_integer,
    ),
    ValueCheck(
        ("layers_per_block",),
        f"not a whole number from 1 to {MAX_LAYERS}",
        lambda v: is_integer(v, most=MAX_LAYERS),
    ),
    ValueCheck(
        ("latent_channels",),
        f"not a whole number from 1 to {MAX_LATENT_CHANNELS}",
        lambda v: is_integer(v, most=MAX_LATENT_CHANNELS),
    ),
    ValueCheck(("scaling_factor",), f"not a number from {MIN_SCALE:g} to {MAX_SCALE:g}", _is_scale),
    ValueCheck(("shift_factor",), "neither a number nor null", lambda v: v is None or is_number(v)),
    ValueCheck(("latents_mean", "latents_std"), "neither a list of numbers nor null", _is_per_channel),
    ValueCheck(
        ("latents_std",),
        f"not a list of numbers from {MIN_SCALE:g} to {MAX_SCALE:g}",
        lambda v: v is None or all(map(_is_scale, v)),
    ),
    ValueCheck(
        ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"),
        "neither true nor false",
        is_boolean,
    ),
)
SUPPORTED_AUTOENCODER_VALUES: dict[str, tuple[Any, ...]] = {
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "act_fn": ("silu", "swish", "mish", "gelu", "relu"),
}


@dataclass(frozen=True)
class AutoencoderConfig:
    """The keys of `config.json`, with diffusers' defaults for those left out.

    Attributes:
        in_channels, out_channels: of the images.
        down_block_types: "DownEncoderBlock2D" for each level.
        up_block_types: "UpDecoderBlock2D" for each level.
        block_out_channels: channels of each level, the highest resolution first; each level but the last halves
            height and width.
        layers_per_block: residual blocks of the encoder at each level; the decoder has one more.
        act_fn: activation of the residual blocks.
        latent_channels: of the latents.
        norm_num_groups: groups of the norms.
        sample_size: pixels along each side in training, and of a tile.
        scaling_factor: multiplies the encoder's latents before the U-Net sees them.
        shift_factor: subtracted from the encoder's latents before they are scaled; null means 0.
        latents_mean, latents_std: normalize each latent channel before it is scaled; null means 0 and 1.
        force_upcast: the autoencoder overflows in float16 and needs float32.
        use_quant_conv: a 1×1 convolution follows the encoder.
        use_post_quant_conv: a 1×1 convolution precedes the decoder.
        mid_block_add_attention: the middle blocks attend.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> AutoencoderConfig:
        """The config of a parsed `config.json`; keys that begin with an underscore are left out.

        Raises:
            CheckpointError: for a key or a value that is not understood, by name.
        """
        config = cls(**known_values(cls, raw))
        check_values(config, AUTOENCODER_CHECKS, SUPPORTED_AUTOENCODER_VALUES)
        config._check_lengths()
        return config

    def to_dict(self) -> dict[str, Any]:
        """Every key, as `config.json` holds it."""
        return {field.name: to_lists(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @property
    def downscale(self) -> int:
        """Pixels along each side for one latent: 2^(levels − 1)."""
        return int(2 ** (len(self.block_out_channels) - 1))

    def largest_map(self, height: int, width: int) -> int:
        """Numbers in the largest feature map of the decoder, for latents of a size."""
        pixels = height * width * self.downscale**2
        # Each level but the lowest begins with the channels of the level below, doubled in height and width.
        channels = (*self.block_out_channels[1:], self.block_out_channels[-1])
        return max(count * pixels // 4**level for level, count in enumerate(channels))

    @property
    def residual(self) -> UNetConfig:
        """The settings of norms and attention, in the terms of the plain U-Net; attention has one head."""
        return UNetConfig(
            act_fn=self.act_fn,
            norm_num_groups=self.norm_num_groups,
            norm_eps=AUTOENCODER_NORM_EPS,
            attention_head_dim=None,
        )

    def scale(self, encoded: Tensor) -> Tensor:
        """The U-Net's latents of the encoder's: (B, latent_channels, H, W) → the same shape.

        With latents_mean and latents_std: (z − mean)·scaling_factor/std. Otherwise (z − shift_factor)·scaling_factor.
        """
        if self.latents_mean is not None and self.latents_std is not None:
            mean, std = _per_channel(self.latents_mean, encoded), _per_channel(self.latents_std, encoded)
            return (encoded - mean) * self.scaling_factor / std
        return (encoded - (self.shift_factor or 0.0)) * self.scaling_factor

    def unscale(self, latents: Tensor) -> Tensor:
        """The decoder's latents of the U-Net's, the inverse of `scale`."""
        if self.latents_mean is not None and self.latents_std is not None:
            mean, std = _per_channel(self.latents_mean, latents), _per_channel(self.latents_std, latents)
            return latents * std / self.scaling_factor + mean
        unscaled = latents / self.scaling_factor
        return unscaled + self.shift_factor if self.shift_factor is not None else unscaled

    def _check_lengths(self) -> None:
        """Every list has an item for each level or latent channel, and the groups divide each level's channels."""
        levels = len(self.block_out_channels)
        for key, count, other in (
            ("down_block_types", levels, "block_out_channels"),
            ("up_block_types", levels, "block_out_channels"),
            ("latents_mean", self.latent_channels, "latent_channels"),
            ("latents_std", self.latent_channels, "latent_channels"),
        ):
            value = getattr(self, key)
            if value is not None and len(value) != count:
                raise CheckpointError(
                    f"{key} = {abbreviate(to_lists(value))} has {len(value)} items, but {other} says {count}"
                )
        if (self.latents_mean is None) != (self.latents_std is None):
            raise CheckpointError("latents_mean and latents_std are given together or not at all")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise CheckpointError(
                    f"block_out_channels holds {channels}, not a multiple of norm_num_groups = {self.norm_num_groups}"
                )


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """One number for each channel, (1, C, 1, 1), of the type and on the device of a tensor."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
