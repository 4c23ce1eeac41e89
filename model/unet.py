"""The U-Net that predicts noise, with the names of diffusers' `UNet2DModel`.

Config keys and state-dict names equal those of diffusers 0.42, so that folders written
by either load in the other. Supported here: Down/Up and AttnDown/AttnUp blocks, the
middle block, positional time embedding, class embedding. What a config asks for beyond
that is refused by name; nothing is ignored.

This module knows nothing of noise schedules, samplers or files.
Source: Ho et al. 2020 (arXiv:2006.11239) section 4; Ronneberger et al. 2015.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import CheckpointError

# For keys whose other values this U-Net does not implement: the values that it does.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional",),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": ("UNetMidBlock2D",),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default",),
    "class_embed_type": (None,),
    "downsample_padding": (0, 1),
}


def _count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


# What the other keys hold: a file may say anything.
KINDS: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (("down_block_types", "up_block_types"), "no list", lambda v: isinstance(v, tuple)),
    (("block_out_channels",), "no list of whole numbers", lambda v: isinstance(v, tuple) and all(map(_count, v))),
    (("in_channels", "out_channels", "layers_per_block"), "no whole number from 1", _count),
    (
        ("time_embedding_dim", "attention_head_dim", "attn_norm_num_groups", "num_class_embeds"),
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
    """The keys of `unet/config.json`, with diffusers' defaults for those left out."""

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
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> UNetConfig:
        """The config of a parsed `config.json`.

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
        if not _count(self.norm_num_groups):
            raise CheckpointError(
                f"norm_num_groups = {self.norm_num_groups!r} is not supported (supported: an integer)"
            )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise CheckpointError(
                    f"block_out_channels holds {channels}, no multiple of norm_num_groups = {self.norm_num_groups}"
                )
        if channels % (self.attn_norm_num_groups or 1):
            raise CheckpointError(f"attn_norm_num_groups = {self.attn_norm_num_groups} does not divide {channels}")


class TimestepEmbedding(nn.Module):
    """MLP on the sinusoidal features of t."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))


def sinusoid(t: Tensor, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoidal features of the noise level t.

    t: (B,) in units of training timesteps, integers or not. Returns (B, channels) float32,
    sin‖cos, or cos‖sin with `flip_sin_to_cos`. Vaswani et al. 2017, section 3.5.
    """
    half = channels // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t[:, None].float() * exponent.exp()[None, :]  # (B, half)
    parts = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    features = torch.cat(parts, dim=-1)
    return F.pad(features, (0, channels % 2))


class ResnetBlock(nn.Module):
    """norm → SiLU → conv, the embedding added, norm → SiLU → dropout → conv; plus the input."""

    def __init__(self, inputs: int, outputs: int, config: UNetConfig, width: int, output_scale: float = 1.0) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.norm1 = nn.GroupNorm(groups, inputs, eps=eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(width, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None
        self.output_scale = output_scale

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, outputs, H, W)
        h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return (x + h) / self.output_scale if self.output_scale != 1.0 else x + h


class Attention(nn.Module):
    """Self-attention over the H·W positions; `attention_head_dim` is the channels per head."""

    def __init__(self, channels: int, config: UNetConfig, groups: int | None = None, output_scale: float = 1.0) -> None:
        super().__init__()
        head_dim = config.attention_head_dim or channels
        self.heads = max(1, channels // head_dim)
        self.group_norm = nn.GroupNorm(groups or config.norm_num_groups, channels, eps=config.norm_eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.output_scale = output_scale

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)

        def split(y: Tensor) -> Tensor:  # (B, heads, H·W, C/heads)
            return y.view(batch, -1, self.heads, channels // self.heads).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.to_q(tokens)), split(self.to_k(tokens)), split(self.to_v(tokens))
        )
        tokens = self.to_out[0](mixed.transpose(1, 2).reshape(batch, -1, channels))
        h = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        return (x + h) / self.output_scale if self.output_scale != 1.0 else x + h


class Downsample(nn.Module):
    """Halve height and width by a strided convolution; padding 0 pads right and bottom by one."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == 0 else x)


class Upsample(nn.Module):
    """Double height and width by the nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """`layers` residual blocks (each followed by attention, if any), then a downsampler."""

    def __init__(self, inputs: int, outputs: int, config: UNetConfig, width: int, *, attend: bool, last: bool) -> None:
        super().__init__()
        layers = config.layers_per_block
        self.resnets = nn.ModuleList(
            ResnetBlock(inputs if j == 0 else outputs, outputs, config, width) for j in range(layers)
        )
        self.attentions = nn.ModuleList(Attention(outputs, config) for _ in range(layers)) if attend else None
        self.downsamplers = None if last else nn.ModuleList([Downsample(outputs, config.downsample_padding)])

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Returns what is kept for the way up; the last is the block's output."""
        kept = []
        for j, resnet in enumerate(self.resnets):
            x = resnet(x, emb)
            if self.attentions is not None:
                x = self.attentions[j](x)
            kept.append(x)
        if self.downsamplers is not None:
            kept.append(self.downsamplers[0](x))
        return kept


class MidBlock(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, config: UNetConfig, width: int) -> None:
        super().__init__()
        scale = config.mid_block_scale_factor
        self.attentions = (
            nn.ModuleList([Attention(channels, config, config.attn_norm_num_groups, scale)])
            if config.add_attention
            else None
        )
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, config, width, scale) for _ in range(2))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resnets[0](x, emb)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x, emb)


class UpBlock(nn.Module):
    """`layers` + 1 residual blocks, each on the input joined with a kept tensor, then an upsampler."""

    def __init__(
        self, inputs: int, previous: int, outputs: int, config: UNetConfig, width: int, *, attend: bool, last: bool
    ) -> None:
        super().__init__()
        layers = config.layers_per_block + 1
        self.resnets = nn.ModuleList(
            ResnetBlock(
                (previous if j == 0 else outputs) + (inputs if j == layers - 1 else outputs), outputs, config, width
            )
            for j in range(layers)
        )
        self.attentions = nn.ModuleList(Attention(outputs, config) for _ in range(layers)) if attend else None
        self.upsamplers = None if last else nn.ModuleList([Upsample(outputs)])

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        for j, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), emb)
            if self.attentions is not None:
                x = self.attentions[j](x)
        return self.upsamplers[0](x) if self.upsamplers is not None else x


class UNet(nn.Module):
    """f_θ(x, t, label) → a tensor like x: noise, v or x_0, as the checkpoint's scheduler file says.

    Raises:
        CheckpointError: from `UNetConfig` for what is not implemented.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        width = config.time_embedding_dim or 4 * channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], width)
        labels = config.num_class_embeds
        self.class_embedding = nn.Embedding(labels, width) if labels is not None else None
        self.down_blocks = nn.ModuleList(
            DownBlock(
                channels[max(i - 1, 0)],
                channels[i],
                config,
                width,
                attend=kind.startswith("Attn"),
                last=i == len(channels) - 1,
            )
            for i, kind in enumerate(config.down_block_types)
        )
        self.mid_block = MidBlock(channels[-1], config, width)
        rising = channels[::-1]
        self.up_blocks = nn.ModuleList(
            UpBlock(
                rising[min(i + 1, len(rising) - 1)],
                rising[max(i - 1, 0)],
                rising[i],
                config,
                width,
                attend=kind.startswith("Attn"),
                last=i == len(rising) - 1,
            )
            for i, kind in enumerate(config.up_block_types)
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def embed(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What every block is told: (B, width) from t (B,) and label (B,) int64."""
        config = self.config
        features = sinusoid(t, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
        emb: Tensor = self.time_embedding(features.to(dtype))
        if self.class_embedding is None:
            assert label is None, "a label was given to a network without classes"
            return emb
        assert label is not None, "a class-conditional network needs a label for every image"
        return emb + self.class_embedding(label)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        x: (B, C, H, W), H and W multiples of `config.downscale`; t: (B,) noise levels in
        units of training timesteps, one an image; label: (B,) class indices, the last of
        `num_class_embeds` meaning "no label". Returns (B, out_channels, H, W).
        """
        if self.config.center_input_sample:
            x = 2 * x - 1.0
        emb = self.embed(t, label, x.dtype)
        h = self.conv_in(x)
        skips = [h]
        for block in self.down_blocks:
            skips.extend(block(skips[-1], emb))
        h = self.mid_block(skips[-1], emb)
        for block in self.up_blocks:
            h = block(h, skips, emb)
        return self.conv_out(F.silu(self.conv_norm_out(h)))
