"""The settings of a U-Net: the keys of `config.json`, checked.

Keys and defaults equal those of diffusers 0.42's `UNet2DModel`. A config that asks for something
`model.networks.unet.unet` does not implement is refused by name; no key is ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.config_checks import (
    MAX_COUNT,
    MAX_LAYERS,
    MAX_LEVELS,
    MAX_ROWS,
    is_boolean,
    is_integer,
    is_integers,
    is_level_list,
    is_number,
    is_optional_integer,
    is_positive,
)

# Keys for which this U-Net implements only some values, with those values.
SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
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


# The other keys: (keys, what is wrong with a value that fails, the check). A file may hold anything.
VALUE_CHECKS: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (("down_block_types", "up_block_types"), f"not a list of at most {MAX_LEVELS}", is_level_list),
    (
        ("block_out_channels",),
        f"not a list of whole numbers from 1 to {MAX_COUNT}, at most {MAX_LEVELS} of them",
        is_integers,
    ),
    (("layers_per_block",), f"not a whole number from 1 to {MAX_LAYERS}", lambda v: is_integer(v, most=MAX_LAYERS)),
    (("in_channels", "out_channels"), f"not a whole number from 1 to {MAX_COUNT}", is_integer),
    (
        ("time_embedding_dim", "attention_head_dim", "norm_num_groups", "attn_norm_num_groups"),
        f"neither a whole number from 1 to {MAX_COUNT} nor null",
        is_optional_integer,
    ),
    (
        ("num_class_embeds", "num_train_timesteps"),
        f"neither a whole number from 1 to {MAX_ROWS} nor null",
        lambda v: v is None or is_integer(v, most=MAX_ROWS),
    ),
    (("mid_block_scale_factor", "norm_eps"), "not a number over 0", is_positive),
    (("freq_shift",), "not a number", is_number),
    (("dropout",), "outside 0 … 1", lambda v: is_number(v) and 0 <= v <= 1),
    (("center_input_sample", "flip_sin_to_cos", "add_attention"), "neither true nor false", is_boolean),
)


@dataclass(frozen=True)
class UNetConfig:
    """The keys of `config.json`, with diffusers' defaults for those left out.

    Attributes:
        sample_size: pixels along each side, or (height, width).
        in_channels, out_channels: of the images; out_channels = 2·in_channels with a learned variance.
        center_input_sample: show the network 2·x − 1, for data in [0, 1].
        time_embedding_type: "positional" (sinusoids), "fourier" (random frequencies) or "learned" (a table).
        time_embedding_dim: width of the embedding; null means 4·block_out_channels[0].
        freq_shift, flip_sin_to_cos: conventions of the sinusoids, see `sinusoidal_features`.
        down_block_types: one block for each level, the highest resolution first.
        up_block_types: one block for each level, the lowest resolution first.
        block_out_channels: channels of each level; each level but the last halves height and width.
        layers_per_block: residual blocks in a down block; up blocks have one more.
        mid_block_scale_factor: what the middle block divides its sums by.
        downsample_padding: 1 pads all around, 0 pads one row and one column at the end.
        downsample_type, upsample_type: how blocks with attention resample, "conv" or "resnet".
        dropout: probability, in training only.
        attention_head_dim: channels of one head, not the number of heads; null means one head.
        norm_num_groups: groups of the norms; null is for Skip blocks, which have a rule of their own.
        attn_norm_num_groups: groups of the norm before the middle block's attention.
        norm_eps: ε under the square root of every norm.
        resnet_time_scale_shift: "default" adds the embedding, "scale_shift" scales and shifts the norm by it.
        add_attention: whether the middle block attends.
        class_embed_type: null (a table of num_class_embeds rows, if any), "timestep" (a number) or "identity".
        num_class_embeds: classes, the one that means "no label" included.
        num_train_timesteps: rows of a learned time embedding.
    """

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
            raise CheckpointError(
                f"config key {abbreviate(unknown[0])} is not understood (known: {', '.join(sorted(known))})"
            )
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
        """The number that height and width must be multiples of: 2^(levels − 1)."""
        return int(2 ** (len(self.block_out_channels) - 1))

    def norm_groups(self, channels: int) -> int:
        """Groups of a norm over `channels` channels, for blocks without a rule of their own."""
        return self.norm_num_groups if self.norm_num_groups is not None else min(channels // 4, 32)

    def _check(self) -> None:
        self._check_values()
        levels = len(self.block_out_channels)
        if not levels == len(self.down_block_types) == len(self.up_block_types):
            raise CheckpointError(
                f"block_out_channels, down_block_types and up_block_types differ in length "
                f"({levels}, {len(self.down_block_types)}, {len(self.up_block_types)})"
            )
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise CheckpointError("num_train_timesteps = None, but time_embedding_type = 'learned' needs a number")
        self._check_groups()
        self._check_skip_blocks()

    def _check_values(self) -> None:
        """Each key by itself."""
        for keys, wrong, is_valid in VALUE_CHECKS:
            for key in keys:
                if not is_valid(getattr(self, key)):
                    raise CheckpointError(f"{key} = {abbreviate(getattr(self, key))} is {wrong}")
        for key, supported in SUPPORTED_VALUES.items():
            value = getattr(self, key)
            for item in value if key.endswith("block_types") else (value,):
                if item not in supported:
                    listed = ", ".join(repr(each) for each in supported)
                    raise CheckpointError(f"{key} = {abbreviate(item)} is not supported (supported: {listed})")

    def _check_groups(self) -> None:
        """A norm needs groups that divide its channels; Skip blocks choose their own."""
        kinds = (*self.down_block_types, *self.up_block_types)
        plain = [kind for kind in kinds if "Skip" not in kind]
        if self.norm_num_groups is None and plain:
            raise CheckpointError(f"norm_num_groups = None is not supported with {plain[0]!r} (supported: Skip blocks)")
        for channels in self.block_out_channels if len(plain) == len(kinds) else ():
            if channels % (self.norm_num_groups or 1):
                raise CheckpointError(
                    f"block_out_channels holds {channels}, not a multiple of norm_num_groups = {self.norm_num_groups}"
                )
        lowest = self.block_out_channels[-1]
        if lowest % (self.attn_norm_num_groups or 1):
            raise CheckpointError(f"attn_norm_num_groups = {self.attn_norm_num_groups} does not divide {lowest}")

    def _check_skip_blocks(self) -> None:
        """The image that Skip blocks pass along has three channels, and keeps h's size only if no block drops it."""
        down = ["Skip" in kind for kind in self.down_block_types]
        up = ["Skip" in kind for kind in self.up_block_types]
        for key, channels, skips in (("in_channels", self.in_channels, down), ("out_channels", self.out_channels, up)):
            if any(skips) and channels != 3:
                raise CheckpointError(f"{key} = {channels} is not supported with Skip blocks (supported: 3)")
        if (False, True) in pairwise(down[:-1]):
            raise CheckpointError("down_block_types has a Skip block after a block of another kind: their sizes differ")
        if (True, False) in pairwise(up):
            raise CheckpointError("up_block_types has a Skip block before a block of another kind: their sizes differ")
