"""The parts of a U-Net in compiled kernels: what `model.networks.parts` says, in fewer passes.

Tensors are (B, C, H, W) with the channels last in memory. A residual block is not told the embedding
of (t, label) but its own projection of it (`model.backends.native.embedding_cache`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoised.model.backends.native.kernels import LANES, LONGEST_ATTENTION, Kernels, Tile, chunk, packed_weight
from denoised.model.backends.packed import ImageByImage
from denoised.model.networks.parts import Attention, Downsample, ResnetBlock, Upsample


class NativeConv2d(nn.Module):
    """A convolution; its output channels are made a multiple of LANES, of which `forward` returns the first.

    tile: from `model.backends.native.kernels.tile_for`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int, tile: Tile, kernels: Kernels) -> None:
        super().__init__()
        self._channels = weight.shape[0]
        missing = -self._channels % LANES
        self._weight = packed_weight(F.pad(weight.detach(), (0, 0, 0, 0, 0, 0, 0, missing)), tile)
        self._bias = F.pad(bias.detach(), (0, missing)) if bias is not None else torch.zeros(self._channels + missing)
        self._padding = padding
        self._tile = tile
        self._kernels = kernels

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """plus: a tensor of the result's shape that is added to it."""
        x = last(x)
        if self._padding:
            x = self._kernels.pad(x, self._padding, self._padding, self._padding, self._padding)
        return self.of_padded(x, plus)

    def of_padded(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """The same of an x that has its zeros around it."""
        if len(self._bias) == self._channels:
            return self._kernels.convolve(self._tile, x, self._weight, self._bias, plus)
        y = self._kernels.convolve(self._tile, x, self._weight, self._bias, None)[:, : self._channels]
        return y if plus is None else y + plus


class NativeLinear(nn.Module):
    """A linear layer on (B, C), as the 1×1 convolution of one pixel."""

    def __init__(self, conv: NativeConv2d) -> None:
        super().__init__()
        self._conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self._conv(x[:, :, None, None]).flatten(1)


class NativeNorm(nn.Module):
    """GroupNorm of x, told something of the noise level, then an activation.

    `told` (B, C) is added before the norm; with scale_shift it is (B, 2·C), two rows s and b, and the norm's
    result becomes norm·(1 + s) + b. border: zeros that the result gets around it.
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
        self._activation = None if isinstance(activation, nn.SiLU | nn.Identity) else by_image(activation)
        self._border = border
        self._scale_shift = scale_shift
        self._kernels = kernels

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        if told is None:
            h = self._norm(last(x))
        elif self._scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self._norm(last(x), scale=scale, shift=shift)
        else:
            h = self._norm(last(x), plus=told)
        return h if self._activation is None else self._activation(h)

    def _norm(self, x: Tensor, **told: Tensor) -> Tensor:
        return self._kernels.norm(
            x, self._weight, self._bias, self._groups, self._eps, silu=self._silu, border=self._border, **told
        )


class PlainNorm(nn.Module):
    """What `NativeNorm` does, by PyTorch's kernels: for channels that make no whole vectors."""

    def __init__(
        self, norm: nn.GroupNorm, activation: nn.Module, *, border: int = 0, scale_shift: bool = False
    ) -> None:
        super().__init__()
        self._weight, self._bias = norm.weight.detach(), norm.bias.detach()
        self._groups, self._eps = norm.num_groups, norm.eps
        self._activation = by_image(activation)
        self._border = border
        self._scale_shift = scale_shift

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        if told is not None and not self._scale_shift:
            x = x + told[:, :, None, None]
        h = F.group_norm(x.contiguous(), self._groups, self._weight, self._bias, self._eps)
        if told is not None and self._scale_shift:
            scale, shift = told[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return last(F.pad(self._activation(h), (self._border,) * 4))


class NativeResnetBlock(nn.Module):
    """`ResnetBlock`. columns: which of what all blocks are told is its own."""

    def __init__(
        self,
        block: ResnetBlock,
        columns: slice,
        kernels: Kernels,
        conv1: NativeConv2d,
        conv2: NativeConv2d,
        shortcut: NativeConv2d | None,
    ) -> None:
        super().__init__()
        self._columns = columns
        self._conv1, self._conv2, self._shortcut = conv1, conv2, shortcut
        self._resample = block.resample
        border = 1 if block.resample is None else 0
        self._norm1 = native_norm(block.norm1, block.activation, kernels, border=border)
        self._norm2 = native_norm(block.norm2, block.activation, kernels, border=1, scale_shift=block.scale_shift)
        self._output_scale = block.output_scale
        self._kernels = kernels

    def forward(self, x: Tensor, told: Tensor, kept: Tensor | None = None) -> Tensor:
        if kept is not None:
            x = self._kernels.join(last(x), last(kept))
        h = self._norm1(x)
        if self._resample is None:
            h = self._conv1.of_padded(h)
        else:
            x, h = self._resample(x), self._conv1(self._resample(h))
        h = self._norm2(h, told[:, self._columns])
        if self._shortcut is not None:
            x = self._shortcut(x)
        h = self._conv2.of_padded(h, plus=last(x))
        return h / self._output_scale if self._output_scale != 1.0 else h


class NativeAttention(nn.Module):
    """`Attention`, with queries, keys and values from one product `qkv`."""

    def __init__(self, attention: Attention, kernels: Kernels, qkv: NativeConv2d, out: NativeConv2d) -> None:
        super().__init__()
        norm = attention.group_norm
        self._norm = native_norm(norm, nn.Identity(), kernels) if norm is not None else nn.Identity()
        self._qkv, self._out = qkv, out
        self._heads = attention.heads
        self._output_scale = attention.output_scale
        self._kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        qkv = self._qkv(self._norm(x))
        depth = qkv.shape[1] // (3 * self._heads)
        fits = depth % LANES == 0 and x.shape[2] * x.shape[3] <= LONGEST_ATTENTION
        mixed = self._kernels.attend(qkv, self._heads) if fits else self._attended(qkv)
        h = self._out(mixed, plus=last(x))
        return h / self._output_scale if self._output_scale != 1.0 else h

    def _attended(self, qkv: Tensor) -> Tensor:
        """By PyTorch's kernel."""
        tokens = qkv.flatten(2).transpose(1, 2).unflatten(2, (3, self._heads, -1))
        q, k, v = tokens.permute(2, 0, 3, 1, 4).contiguous()  # each (B, heads, H·W, D)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return mixed.transpose(1, 2).unflatten(2, qkv.shape[2:])


class NativeDownsample(nn.Module):
    """`Downsample`."""

    def __init__(self, downsample: Downsample, kernels: Kernels, conv: NativeConv2d) -> None:
        super().__init__()
        self._conv = conv
        self._uneven = downsample.padding == 0
        self._kernels = kernels

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        return self._conv.of_padded(self._kernels.pad(last(x), 0, 1, 0, 1)) if self._uneven else self._conv(x)


class NativeUpsample(nn.Module):
    """`Upsample` at less than half the work.

    Doubled by the nearest neighbour, the nine weights of a pixel fall on four pixels of the small picture;
    on which, its place among four says. So one 2×2 convolution of the small picture, with the weights of each
    place summed (`weights_by_place`), makes all four, and they are put in their places. (Shi et al. 2016,
    arXiv:1609.07009.)
    """

    def __init__(self, kernels: Kernels, conv: NativeConv2d) -> None:
        super().__init__()
        self._conv = conv
        self._kernels = kernels

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        return self._kernels.interleave(self._conv(x))


def weights_by_place(upsample: Upsample) -> Tensor:
    """(O, I, 3, 3) → (4·O, I, 2, 2), place (a, b) at (2a + b)·O …

    Row k of three above pixel 2i + a of the doubled picture is row (2i + a + k − 1) // 2 of the small one:
    the first of two, or the second.
    """
    weight = upsample.conv.weight.detach()
    rows = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float64)  # (place, row, k)
    summed = torch.einsum("apk,bql,oikl->aboipq", rows, rows, weight.double())
    return summed.flatten(0, 2).to(weight.dtype)


def native_norm(
    norm: nn.GroupNorm, activation: nn.Module, kernels: Kernels, *, border: int = 0, scale_shift: bool = False
) -> nn.Module:
    """A norm and the activation after it (`nn.Identity` for none), the fastest way there is for its channels."""
    if chunk(norm.num_channels, norm.num_groups) is None:
        return PlainNorm(norm, activation, border=border, scale_shift=scale_shift)
    return NativeNorm(norm, activation, kernels, border=border, scale_shift=scale_shift)


def by_image(activation: nn.Module) -> nn.Module:
    """An activation that gives an image the same bits in any batch."""
    return ImageByImage(activation) if isinstance(activation, nn.SiLU | nn.Mish) else activation


def last(x: Tensor) -> Tensor:
    """The same tensor with its channels last in memory; itself where they are."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
