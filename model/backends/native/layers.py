"""The layers of a U-Net in compiled kernels: `model.networks.unet.unet_layers` in fewer passes over memory.

Tensors are (B, C, H, W) with the channels last in memory. The residual blocks receive, in place of the embedding of
(t, label), all its projections side by side (`model.backends.native.embedding_cache`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoised.model.backends.native.kernels import MAX_TOKENS, Kernels
from denoised.model.backends.native.tiles import LANES, Tile, norm_chunk, packed_weight
from denoised.model.backends.packed import PerImageActivation
from denoised.model.networks.unet.unet_layers import Attention, Downsample, ResnetBlock, Upsample


class NativeConv2d(nn.Module):
    """A convolution. Its output channels are padded to a multiple of LANES; `forward` returns the first ones."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int, tile: Tile, kernels: Kernels) -> None:
        """weight: (O, I, K, K); tile: from `model.backends.native.tiles.tile_for`."""
        super().__init__()
        self._channels = weight.shape[0]
        # The kernels write whole vectors of output channels; the padded ones have weight and bias 0.
        missing = -self._channels % LANES
        self._weight = packed_weight(F.pad(weight.detach(), (0, 0, 0, 0, 0, 0, 0, missing)), tile)
        self._bias = F.pad(bias.detach(), (0, missing)) if bias is not None else torch.zeros(self._channels + missing)
        self._padding = padding
        self._tile = tile
        self._kernels = kernels

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """addend: a tensor of the result's shape that is added to it."""
        x = channels_last(x)
        if self._padding:
            x = self._kernels.pad(x, self._padding, self._padding, self._padding, self._padding)
        return self.convolve_padded(x, addend)

    def convolve_padded(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """The same for an x that has its border of zeros already."""
        missing = self._tile.pixels - self._out_width(x)
        if len(self._bias) == self._channels and missing <= 0:
            return self._convolve(x, addend)
        if missing > 0:  # a map narrower than the tile
            # The kernel computes whole tiles: zeros on the right make the row long enough; their outputs are cut off.
            y = self._convolve(channels_last(F.pad(x, (0, missing * self._tile.stride))), None)
            y = channels_last(y[..., : y.shape[3] - missing])
        else:
            y = self._convolve(x, None)
        y = y[:, : self._channels]  # without the padded channels
        return y if addend is None else y + addend

    def _out_width(self, x: Tensor) -> int:
        """Pixels of a row that the kernel computes; a convolution of size 1 may join rows."""
        tile = self._tile
        return x.shape[2] * x.shape[3] if tile.is_pointwise else (x.shape[3] - tile.size) // tile.stride + 1

    def _convolve(self, x: Tensor, addend: Tensor | None) -> Tensor:
        return self._kernels.convolve(self._tile, x, self._weight, self._bias, addend)


class NativeLinear(nn.Module):
    """A linear layer on (B, C), as the 1×1 convolution of one pixel."""

    def __init__(self, conv: NativeConv2d) -> None:
        super().__init__()
        self._conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self._conv(x[:, :, None, None]).flatten(1)


class NativeNorm(nn.Module):
    """GroupNorm with a residual block's projection of the embedding, then an activation; zeros around the result.

    The projection (B, C) is added before the norm. With scale_shift it is (B, 2·C), s and b, and the norm's result
    becomes norm·(1 + s) + b.
    """

    def __init__(
        self,
        norm: nn.GroupNorm,
        activation: nn.Module,
        kernels: Kernels,
        *,
        border: int = 0,
        scale_shift: bool = False,
    ) -> None:
        super().__init__()
        self._weight, self._bias = norm.weight.detach(), norm.bias.detach()
        self._groups, self._eps = norm.num_groups, norm.eps
        self._silu = isinstance(activation, nn.SiLU)
        self._activation = None if isinstance(activation, nn.SiLU | nn.Identity) else per_image(activation)
        self._border = border
        self._scale_shift = scale_shift
        self._kernels = kernels

    def forward(self, x: Tensor, projection: Tensor | None = None) -> Tensor:
        x = channels_last(x)
        if projection is None:
            h = self._norm(x)
        elif self._scale_shift:
            # (B, 2·C) → two of (B, C).
            scale, shift = projection.chunk(2, dim=1)
            # GroupNorm(x)·(1 + s) + b (Nichol & Dhariwal 2021, arXiv:2102.09672).
            h = self._norm(x, scale=scale, shift=shift)
        else:
            # GroupNorm(x + e), with e the same for all pixels of a channel (Ho et al. 2020, appendix B).
            h = self._norm(x, addend=projection)
        return h if self._activation is None else self._activation(h)

    def _norm(self, x: Tensor, **conditioning: Tensor) -> Tensor:
        return self._kernels.norm(
            x, self._weight, self._bias, self._groups, self._eps, silu=self._silu, border=self._border, **conditioning
        )


class FallbackNorm(nn.Module):
    """`NativeNorm` in PyTorch's kernels, for channels that are not whole vectors."""

    def __init__(
        self, norm: nn.GroupNorm, activation: nn.Module, *, border: int = 0, scale_shift: bool = False
    ) -> None:
        super().__init__()
        self._weight, self._bias = norm.weight.detach(), norm.bias.detach()
        self._groups, self._eps = norm.num_groups, norm.eps
        self._activation = per_image(activation)
        self._border = border
        self._scale_shift = scale_shift

    def forward(self, x: Tensor, projection: Tensor | None = None) -> Tensor:
        if projection is not None and not self._scale_shift:
            # (B, C) → (B, C, 1, 1), for every pixel.
            x = x + projection[:, :, None, None]
        h = F.group_norm(x.contiguous(), self._groups, self._weight, self._bias, self._eps)
        if projection is not None and self._scale_shift:
            scale, shift = projection[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return channels_last(F.pad(self._activation(h), (self._border,) * 4))


class NativeResnetBlock(nn.Module):
    """`ResnetBlock`, whose norms write the borders that the convolutions after them need."""

    def __init__(
        self,
        block: ResnetBlock,
        columns: slice,
        kernels: Kernels,
        conv1: NativeConv2d,
        conv2: NativeConv2d,
        shortcut: NativeConv2d | None,
    ) -> None:
        """columns: which of the projections of all blocks are this block's."""
        super().__init__()
        self._columns = columns
        self._conv1, self._conv2, self._shortcut = conv1, conv2, shortcut
        self._resample = block.resample
        border = 1 if block.resample is None else 0  # what is resampled gets its border afterward
        self._norm1 = native_norm(block.norm1, block.activation, kernels, border=border)
        self._norm2 = native_norm(block.norm2, block.activation, kernels, border=1, scale_shift=block.scale_shift)
        self._output_scale = block.output_scale
        self._kernels = kernels

    def forward(self, x: Tensor, projections: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            # (B, C + C_skip, H, W), as in `ResnetBlock`.
            x = self._kernels.join(channels_last(x), channels_last(skip))
        h = self._norm1(x)
        if self._resample is None:
            h = self._conv1.convolve_padded(h)
        else:
            x, h = self._resample(x), self._conv1(self._resample(h))
        h = self._norm2(h, projections[:, self._columns])
        if self._shortcut is not None:
            x = self._shortcut(x)
        # The sum of both paths is part of the convolution: one pass less over memory.
        h = self._conv2.convolve_padded(h, addend=channels_last(x))
        return h / self._output_scale if self._output_scale != 1.0 else h


class NativeAttention(nn.Module):
    """`Attention`, with queries, keys and values from one convolution `qkv`."""

    def __init__(self, attention: Attention, kernels: Kernels, qkv: NativeConv2d, out: NativeConv2d) -> None:
        super().__init__()
        norm = attention.group_norm
        self._norm = native_norm(norm, nn.Identity(), kernels) if norm is not None else nn.Identity()
        self._qkv, self._out = qkv, out
        self._heads = attention.heads
        self._output_scale = attention.output_scale
        self._kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        qkv = self._qkv(self._norm(x))  # (B, 3·heads·D, H, W)
        depth = qkv.shape[1] // (3 * self._heads)
        # The kernel reads whole vectors of a head, and holds one row of q·kᵀ, (H·W), for each of a few queries.
        fits = depth % LANES == 0 and x.shape[2] * x.shape[3] <= MAX_TOKENS
        mixed = self._kernels.attend(qkv, self._heads) if fits else self._attend_in_torch(qkv)
        h = self._out(mixed, addend=channels_last(x))
        return h / self._output_scale if self._output_scale != 1.0 else h

    def _attend_in_torch(self, qkv: Tensor) -> Tensor:
        """`Kernels.attend` in PyTorch's kernels, for other depths and larger images."""
        # (B, 3·heads·D, H, W) → (B, H·W, 3, heads, D).
        tokens = qkv.flatten(2).transpose(1, 2).unflatten(2, (3, self._heads, -1))
        q, k, v = tokens.permute(2, 0, 3, 1, 4).contiguous()  # each (B, heads, H·W, D)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return mixed.transpose(1, 2).unflatten(2, qkv.shape[2:])


class NativeDownsample(nn.Module):
    """`Downsample`."""

    def __init__(self, downsample: Downsample, kernels: Kernels, conv: NativeConv2d) -> None:
        super().__init__()
        self._conv = conv
        self._asymmetric = downsample.padding == 0
        self._kernels = kernels

    def forward(self, x: Tensor, projections: Tensor) -> Tensor:
        if self._asymmetric:
            # TensorFlow's "SAME" padding: a column right and a row below.
            return self._conv.convolve_padded(self._kernels.pad(channels_last(x), 0, 1, 0, 1))
        return self._conv(x)


class NativeUpsample(nn.Module):
    """`Upsample` with less than half the multiplications (Shi et al. 2016, arXiv:1609.07009).

    After doubling by nearest neighbor, the nine weights of an output pixel fall on four pixels of the small image.
    Which weights share a pixel depends on the output pixel's phase, (row mod 2, column mod 2). So one 2×2 convolution
    of the small image, with the weights of each phase summed (`subpixel_weights`), computes all four phases, and
    `Kernels.interleave` puts them in their places.
    """

    def __init__(self, kernels: Kernels, conv: NativeConv2d) -> None:
        super().__init__()
        self._conv = conv
        self._kernels = kernels

    def forward(self, x: Tensor, projections: Tensor) -> Tensor:
        # The 2×2 convolution has a border of 1: (B, C, H, W) → (B, 4·C, H + 1, W + 1) → (B, C, 2·H, 2·W).
        return self._kernels.interleave(self._conv(x))


def subpixel_weights(upsample: Upsample) -> Tensor:
    """(O, I, 3, 3) → (4·O, I, 2, 2), with phase (a, b) at (2a + b)·O …

    Weight row k of output row 2i + a reads row 2i + a + k − 1 of the doubled image, which is row (2i + a + k − 1) // 2
    of the small one: i − 1 or i for phase 0, i or i + 1 for phase 1.
    """
    weight = upsample.conv.weight.detach()
    rows = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float64)  # (phase, row, k)
    # W_ab[o, i, p, q] = Σ_kl rows[a, p, k]·rows[b, q, l]·W[o, i, k, l], in float64: the sums are rounded once.
    summed = torch.einsum("apk,bql,oikl->aboipq", rows, rows, weight.double())
    return summed.flatten(0, 2).to(weight.dtype)


def native_norm(
    norm: nn.GroupNorm, activation: nn.Module, kernels: Kernels, *, border: int = 0, scale_shift: bool = False
) -> nn.Module:
    """A norm and the activation after it (`nn.Identity` for none), in the fastest way that its channels allow."""
    if norm_chunk(norm.num_channels, norm.num_groups) is None:
        return FallbackNorm(norm, activation, border=border, scale_shift=scale_shift)
    return NativeNorm(norm, activation, kernels, border=border, scale_shift=scale_shift)


def per_image(activation: nn.Module) -> nn.Module:
    """An activation that gives an image the same bits in any batch."""
    return PerImageActivation(activation) if isinstance(activation, nn.SiLU | nn.Mish) else activation


def channels_last(x: Tensor) -> Tensor:
    """The same tensor with its channels last in memory; x itself if they are already."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
