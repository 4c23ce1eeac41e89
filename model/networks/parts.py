"""What the U-Net's blocks are made of, with the tensor names of diffusers.

Sources: Ho et al. 2020 (arXiv:2006.11239), appendix B; Vaswani et al. 2017 (arXiv:1706.03762);
Song et al. 2021 (arXiv:2011.13456), appendix H, for filtered resampling.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoised.model.errors import CheckpointError
from denoised.model.networks.config import UNetConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}


class ResnetBlock(nn.Module):
    """norm → activation → conv, the embedding, norm → activation → dropout → conv; plus the input.

    groups: of the two norms, if not the config's. resample: "down" or "up" halves or doubles
    height and width between the first activation and convolution, "down_fir" and "up_fir"
    through a filter. shortcut: a 1×1 convolution of the input also where channels stay.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: UNetConfig,
        width: int,
        *,
        groups: tuple[int, int] | None = None,
        output_scale: float = 1.0,
        resample: str | None = None,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        first, second = groups or (config.norm_groups(inputs), config.norm_groups(outputs))
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.norm1 = group_norm(first, inputs, config.norm_eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(width, 2 * outputs if self.scale_shift else outputs)
        self.norm2 = group_norm(second, outputs, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if shortcut or inputs != outputs else None
        self.activation = ACTIVATIONS[config.act_fn]()
        self.resample = RESAMPLE[resample] if resample is not None else None
        self.output_scale = output_scale

    def forward(self, x: Tensor, emb: Tensor, kept: Tensor | None = None) -> Tensor:
        """x, on the way up with what was kept on the way down beside its channels; emb: (B, width)."""
        if kept is not None:
            x = torch.cat([x, kept], dim=1)
        h = self.activation(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)  # (B, outputs, H, W)
        told = self.time_emb_proj(self.activation(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + told)
        h = self.conv2(self.dropout(self.activation(h)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return (x + h) / self.output_scale if self.output_scale != 1.0 else x + h


class Attention(nn.Module):
    """Self-attention over the H·W positions; `attention_head_dim` is the channels per head, null means one head.

    groups: of its norm; None for no norm.
    """

    def __init__(self, channels: int, config: UNetConfig, groups: int | None, output_scale: float = 1.0) -> None:
        super().__init__()
        head_dim = config.attention_head_dim or channels
        if head_dim > channels:
            raise CheckpointError(f"attention_head_dim = {head_dim} is over the {channels} channels of a block")
        self.heads = channels // head_dim
        inner = self.heads * head_dim
        self.group_norm = group_norm(groups, channels, config.norm_eps) if groups is not None else None
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])
        self.output_scale = output_scale

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        normed = self.group_norm(x) if self.group_norm is not None else x
        tokens = normed.flatten(2).transpose(1, 2)  # (B, H·W, C)
        mixed = F.scaled_dot_product_attention(
            self._split(self.to_q(tokens)), self._split(self.to_k(tokens)), self._split(self.to_v(tokens))
        )
        tokens = self.to_out[0](mixed.transpose(1, 2).flatten(2))
        h = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        return (x + h) / self.output_scale if self.output_scale != 1.0 else x + h

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, H·W, heads·D) → (B, heads, H·W, D)."""
        batch, count, inner = tokens.shape
        return tokens.view(batch, count, self.heads, inner // self.heads).transpose(1, 2)


class Downsample(nn.Module):
    """Halve height and width by a strided convolution; padding 0 pads right and bottom by one."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == 0 else x)


class Upsample(nn.Module):
    """Double height and width by the nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def fir_down(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, H/2, W/2) through the filter (1, 3, 3, 1)/8 along each side, zeros outside.

    y_i = (x_{2i−1} + 3·x_{2i} + 3·x_{2i+1} + x_{2i+2})/8, by elementwise sums: the same bits in any batch.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        before, even, odd, after = (_shifted(x, dim, by)[_every_second(dim, size)] for by in (-1, 0, 1, 2))
        x = (before + after + 3 * (even + odd)) / 8
    return x


def fir_up(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, 2H, 2W) through the filter (1, 3, 3, 1)/4 along each side, zeros outside.

    y_{2i} = (x_{i−1} + 3·x_i)/4 and y_{2i+1} = (3·x_i + x_{i+1})/4.
    """
    for dim in (2, 3):
        even = (_shifted(x, dim, -1) + 3 * x) / 4
        odd = (3 * x + _shifted(x, dim, 1)) / 4
        x = torch.stack([even, odd], dim=dim + 1).flatten(dim, dim + 1)
    return x


def _shifted(x: Tensor, dim: int, by: int) -> Tensor:
    """Its i-th entry along a side is x's (i + by)-th, zero where x has none."""
    missing = [0, 0, 0, 0]  # left, right, top, bottom
    missing[(0 if dim == 3 else 2) + (0 if by < 0 else 1)] = abs(by)
    size = x.shape[dim]
    padded = F.pad(x, missing)
    return padded.narrow(dim, max(by, 0), size)


def _every_second(dim: int, size: int) -> tuple[slice, ...]:
    return tuple(slice(0, size, 2) if d == dim else slice(None) for d in range(4))


# Without weights, between the first activation and convolution of a residual block, on both of its paths.
RESAMPLE: dict[str, Callable[[Tensor], Tensor]] = {
    "down": lambda x: F.avg_pool2d(x, 2),
    "up": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "down_fir": fir_down,
    "up_fir": fir_up,
}


def group_norm(groups: int, channels: int, eps: float) -> nn.GroupNorm:
    """A norm over groups of channels.

    Raises:
        CheckpointError: where the groups do not divide the channels.
    """
    if groups < 1 or channels % groups:
        raise CheckpointError(f"block_out_channels leads to a norm of {groups} groups over {channels} channels")
    return nn.GroupNorm(groups, channels, eps=eps)
