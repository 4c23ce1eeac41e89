"""The layers of the U-Net's blocks, with diffusers' tensor names.

Sources: Ho et al. 2020 (arXiv:2006.11239), appendix B; Vaswani et al. 2017 (arXiv:1706.03762) for attention;
Nichol & Dhariwal 2021 (arXiv:2102.09672) for the embedding as scale and shift.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoised.model.errors import CheckpointError
from denoised.model.networks.unet.fir import fir_downsample, fir_upsample
from denoised.model.networks.unet.unet_config import UNetConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}

# Resampling inside a residual block, on both of its paths; none of them has weights.
RESAMPLE: dict[str, Callable[[Tensor], Tensor]] = {
    "down": lambda x: F.avg_pool2d(x, 2),
    "up": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "down_fir": fir_downsample,
    "up_fir": fir_upsample,
}


class ResnetBlock(nn.Module):
    """norm → activation → conv, plus the embedding; norm → activation → dropout → conv, plus the input.

    groups: of the two norms, where they differ from the config's.
    output_scale: divides the sum of both paths.
    resample: a key of `RESAMPLE`, applied to both paths between the first activation and convolution.
    shortcut: a 1×1 convolution of the input, even where the channels stay the same.

    Raises:
        CheckpointError: if the groups do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: UNetConfig,
        embed_dim: int,
        *,
        groups: tuple[int, int] | None = None,
        output_scale: float = 1.0,
        resample: str | None = None,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        first, second = groups or (config.norm_groups(in_channels), config.norm_groups(out_channels))
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.norm1 = group_norm(first, in_channels, config.norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(embed_dim, 2 * out_channels if self.scale_shift else out_channels)
        self.norm2 = group_norm(second, out_channels, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        needs_shortcut = shortcut or in_channels != out_channels
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if needs_shortcut else None
        self.activation = ACTIVATIONS[config.act_fn]()
        self.resample = RESAMPLE[resample] if resample is not None else None
        self.output_scale = output_scale

    def forward(self, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        """Evaluate the block.

        x: (B, C, H, W); skip: (B, C_skip, H, W) from the way down, with C + C_skip = in_channels;
        emb: (B, embed_dim). Returns (B, out_channels, H', W').
        """
        if skip is not None:
            x = torch.cat([x, skip], dim=1)  # (B, in_channels, H, W)
        h = self.activation(self.norm1(x))  # (B, in_channels, H, W)
        if self.resample is not None:
            # Both paths change size, or their sum would have no shape; after the activation, as in BigGAN.
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)  # (B, out_channels, H', W')
        # (B, out_channels, 1, 1), or twice the channels with scale and shift.
        projected = self.time_emb_proj(self.activation(emb))[:, :, None, None]
        if self.scale_shift:
            # GroupNorm(h)·(1 + w) + b, with (w, b) from the embedding.
            scale, shift = projected.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            # The same number for every pixel of a channel.
            h = self.norm2(h + projected)
        h = self.conv2(self.dropout(self.activation(h)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)  # (B, out_channels, H', W')
        # No division by 1: this line runs for every block of most checkpoints.
        return (x + h) / self.output_scale if self.output_scale != 1.0 else x + h


class DotProductAttention(nn.Module):
    """softmax(q·kᵀ/√D)·v (Vaswani et al. 2017, arXiv:1706.03762, eq. 1); a module, so that a backend can replace it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: (B, heads, N, D); k, v: (B, heads, M, D). Returns (B, heads, N, D)."""
        return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention over the H·W positions, plus the input.

    config.attention_head_dim: channels of one head; null means one head.
    groups: of the norm before it; None for no norm.

    Raises:
        CheckpointError: if a head has more channels than the block, or the groups do not divide them.
    """

    def __init__(self, channels: int, config: UNetConfig, groups: int | None, output_scale: float = 1.0) -> None:
        super().__init__()
        head_dim = config.attention_head_dim or channels
        if head_dim > channels:
            raise CheckpointError(f"attention_head_dim = {head_dim} is over the {channels} channels of a block")
        # As in diffusers, q, k and v consist of whole heads: `inner` may be below `channels`.
        self.heads = channels // head_dim
        inner = self.heads * head_dim
        self.group_norm = group_norm(groups, channels, config.norm_eps) if groups is not None else None
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])
        self.attend = DotProductAttention()
        self.output_scale = output_scale

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        normed = self.group_norm(x) if self.group_norm is not None else x
        tokens = normed.flatten(2).transpose(1, 2)  # (B, H·W, C)
        # Each (B, heads, H·W, D).
        q, k, v = (self._split_heads(project(tokens)) for project in (self.to_q, self.to_k, self.to_v))
        mixed = self.attend(q, k, v)  # (B, heads, H·W, D)
        tokens = self.to_out[0](mixed.transpose(1, 2).flatten(2))  # (B, H·W, C)
        h = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        return (x + h) / self.output_scale if self.output_scale != 1.0 else x + h

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """(B, H·W, heads·D) → (B, heads, H·W, D)."""
        batch, count, inner = tokens.shape
        return tokens.view(batch, count, self.heads, inner // self.heads).transpose(1, 2)


class Downsample(nn.Module):
    """Halve height and width by a strided convolution; padding 0 pads one column right and one row below."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        # (left, right, top, bottom): TensorFlow's "SAME" padding of a strided convolution.
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == 0 else x)


class Upsample(nn.Module):
    """Double height and width by nearest neighbor, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def group_norm(groups: int, channels: int, eps: float) -> nn.GroupNorm:
    """A norm over groups of channels.

    Raises:
        CheckpointError: if the groups do not divide the channels.
    """
    if groups < 1 or channels % groups:
        raise CheckpointError(f"block_out_channels leads to a norm of {groups} groups over {channels} channels")
    return nn.GroupNorm(groups, channels, eps=eps)
