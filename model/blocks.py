"""The parts of the U-Net, with the tensor names of diffusers' blocks.

Sources: Ho et al. 2020 (arXiv:2006.11239), appendix B; Vaswani et al. 2017 (arXiv:1706.03762).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import UNetConfig


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
