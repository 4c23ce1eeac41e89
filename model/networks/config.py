"""What a U-Net is built from: the keys of `config.json`, checked.

Keys and defaults equal those of diffusers 0.42's `UNet2DModel`. What a config asks for
beyond what `model.networks.unet` implements is refused by name; nothing is ignored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from denoised.model.errors import CheckpointError

# For keys whose other values this U-Net does not implement: the values that it does.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "down_block_types": (
        "DownBlock2D",
        "AttnDownBlock2D",
        "ResnetDownsampleBlock2D",
        "SkipDownBlock2D",
        "AttnSkipDownBlock2D",
    ),
    "mid_block_type": ("UNetMidBlock2D", None),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish", "mish", "gelu", "relu"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
    "downsample_padding": (0, 1),
}


def _count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _counts(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(_count, value))


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


# What the other keys hold: a file may say anything.
KINDS: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (("down_block_types", "up_block_types"), "no list", lambda v: isinstance(v, tuple)),
    (("block_out_channels",), "no list of whole numbers", _counts),
    (("in_channels", "out_channels", "layers_per_block"), "no whole number from 1", _count),
    (
        (
            "time_embedding_dim",
            "attention_head_dim",
            "norm_num_groups",
            "attn_norm_num_groups",
            "num_class_embeds",
            "num_train_timesteps",
        ),
        "neither a whole number from 1 nor null",
        lambda v: v is None or _count(v),
    ),
    (("mid_block_scale_factor", "norm_eps"), "no number over 0", lambda v: _number(v) and v > 0),
    (("freq_shift",), "no number", _number),
    (("dropout",), "outside 0 … 1", lambda v: _number(v) and 0 <= v <= 1),
    (("center_input_sample", "flip_sin_to_cos", "add_attention"), "neither true nor false", lambda v: type(v) is bool),
)


@dataclass(frozen=True)
class UNetConfig:
    """The keys of `config.json`, with diffusers' defaults for those left out."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", *("AttnDownBlock2D",) * 3)
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (*("AttnUpBlock2D",) * 3, "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> UNetConfig:
        """The config of a parsed `config.json`; keys that begin with an underscore are left out.

        Raises:
            CheckpointError: for a key or a value that is not understood, by name.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in raw.items() if not key.startswith("_")}
        if unknown := sorted(set(values) - known):
            raise CheckpointError(f"config key {unknown[0]!r} is not understood (known: {', '.join(sorted(known))})")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        config = cls(**values)
        config._check()
        return config

    def to_dict(self) -> dict[str, Any]:
        """Every key, as `config.json` holds it."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @property
    def downscale(self) -> int:
        """The factor that height and width must be multiples of."""
        return int(2 ** (len(self.block_out_channels) - 1))

    def norm_groups(self, channels: int) -> int:
        """Groups of a norm over that many channels, where a block has no rule of its own."""
        return self.norm_num_groups if self.norm_num_groups is not None else min(channels // 4, 32)

    def _check(self) -> None:
        for keys, wrong, holds in KINDS:
            for key in keys:
                if not holds(getattr(self, key)):
                    raise CheckpointError(f"{key} = {getattr(self, key)!r} is {wrong}")
        for key, allowed in IMPLEMENTED.items():
            value = getattr(self, key)
            for item in value if key.endswith("block_types") else (value,):
                if item not in allowed:
                    listed = ", ".join(repr(a) for a in allowed)
                    raise CheckpointError(f"{key} = {item!r} is not supported (supported: {listed})")
        levels = len(self.block_out_channels)
        if not levels == len(self.down_block_types) == len(self.up_block_types):
            raise CheckpointError(
                f"block_out_channels, down_block_types and up_block_types differ in length "
                f"({levels}, {len(self.down_block_types)}, {len(self.up_block_types)})"
            )
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise CheckpointError("num_train_timesteps = None, but time_embedding_type = 'learned' needs a number")
        self._check_groups()
        self._check_skips()

    def _check_groups(self) -> None:
        kinds = (*self.down_block_types, *self.up_block_types)
        plain = [kind for kind in kinds if "Skip" not in kind]
        if self.norm_num_groups is None and plain:
            raise CheckpointError(f"norm_num_groups = None is not supported with {plain[0]!r} (supported: Skip blocks)")
        for channels in self.block_out_channels if len(plain) == len(kinds) else ():
            if channels % (self.norm_num_groups or 1):
                raise CheckpointError(
                    f"block_out_channels holds {channels}, no multiple of norm_num_groups = {self.norm_num_groups}"
                )
        lowest = self.block_out_channels[-1]
        if lowest % (self.attn_norm_num_groups or 1):
            raise CheckpointError(f"attn_norm_num_groups = {self.attn_norm_num_groups} does not divide {lowest}")

    def _check_skips(self) -> None:
        """The picture beside h has three channels, and h's size only while every block carries it along."""
        down = ["Skip" in kind for kind in self.down_block_types]
        up = ["Skip" in kind for kind in self.up_block_types]
        for key, channels, skips in (("in_channels", self.in_channels, down), ("out_channels", self.out_channels, up)):
            if any(skips) and channels != 3:
                raise CheckpointError(f"{key} = {channels} is not supported with Skip blocks (supported: 3)")
        if (False, True) in pairwise(down[:-1]):
            raise CheckpointError("down_block_types has a Skip block after one of another kind, of another size")
        if (True, False) in pairwise(up):
            raise CheckpointError("up_block_types has a Skip block before one of another kind, of another size")
