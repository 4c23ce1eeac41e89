"""The transformers of a text U-Net in compiled kernels: the functions of `model.networks.text_unet.transformer`.

Tensors are (B, C, H, W) with the channels last in memory, so that a pixel is a token without any change of layout. In
place of the text's hidden states, the transformers receive the keys and values of all their attentions side by side
(`model.backends.native.transformers.text_projection`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from denoised.model.backends.native.kernels import Kernels
from denoised.model.backends.native.layers import NativeConv2d, channels_last
from denoised.model.backends.native.transformers.text_projection import TextColumns
from denoised.model.backends.native.transformers.transformer_kernels import attend_text, gated_gelu, layer_norm


class NativeLayerNorm(nn.Module):
    """Layer norm over the channels of each pixel."""

    def __init__(self, norm: nn.LayerNorm, kernels: Kernels) -> None:
        super().__init__()
        self._weight, self._bias, self._eps = norm.weight.detach(), norm.bias.detach(), norm.eps
        self._kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(self._kernels, x, self._weight, self._bias, self._eps)


class NativeSelfAttention(nn.Module):
    """Attention of the pixels to each other, with queries, keys and values from one convolution `qkv`."""

    def __init__(self, heads: int, kernels: Kernels, qkv: NativeConv2d, out: NativeConv2d) -> None:
        super().__init__()
        self._heads, self._kernels = heads, kernels
        self._qkv, self._out = qkv, out

    def forward(self, normed: Tensor, text: Tensor, addend: Tensor) -> Tensor:
        """normed, addend: (B, C, H, W); returns the attention's output plus the addend."""
        return self._out(self._kernels.attend(self._qkv(normed), self._heads), addend=addend)


class NativeTextAttention(nn.Module):
    """Attention of the pixels to the text."""

    def __init__(
        self, heads: int, kernels: Kernels, query: NativeConv2d, out: NativeConv2d, columns: TextColumns
    ) -> None:
        super().__init__()
        self._heads, self._kernels = heads, kernels
        self._query, self._out = query, out
        self._columns = columns

    def forward(self, normed: Tensor, text: Tensor, addend: Tensor) -> Tensor:
        """normed, addend: (B, C, H, W); text: (B, columns of all attentions). Returns the output plus the addend."""
        # (B, width·padded) and (B, width·M).
        keys, values = self._columns.split(text)
        # (B, heads·D, H, W)
        mixed = attend_text(self._kernels, self._query(normed), keys, values, self._heads)
        return self._out(mixed, addend=addend)


@dataclass(frozen=True)
class LayerParts:
    """The parts of one transformer layer, in the order in which they are evaluated."""

    norm1: NativeLayerNorm
    attn1: NativeSelfAttention | NativeTextAttention
    norm2: NativeLayerNorm
    attn2: NativeTextAttention
    norm3: NativeLayerNorm
    gate: NativeConv2d
    out: NativeConv2d


class NativeTransformerLayer(nn.Module):
    """Self-attention, attention to the text, feed-forward; each after a norm, and added to its input."""

    def __init__(self, parts: LayerParts, kernels: Kernels) -> None:
        super().__init__()
        self._parts, self._kernels = parts, kernels

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x: (B, C, H, W); text: (B, columns of all attentions). Returns (B, C, H, W)."""
        parts = self._parts
        # x + f(norm(x)), three times. The sum is part of each last convolution: one pass less over memory.
        x = parts.attn1(parts.norm1(x), text, addend=x)
        x = parts.attn2(parts.norm2(x), text, addend=x)
        # (B, C, H, W) → (B, 8·C, H, W) → (B, 4·C, H, W) → (B, C, H, W)
        return parts.out(gated_gelu(self._kernels, parts.gate(parts.norm3(x))), addend=x)


class NativeSpatialTransformer(nn.Module):
    """`SpatialTransformer`, whose projections are 1×1 convolutions either way."""

    def __init__(
        self, norm: nn.Module, proj_in: NativeConv2d, layers: list[NativeTransformerLayer], proj_out: NativeConv2d
    ) -> None:
        super().__init__()
        self._norm, self._proj_in, self._proj_out = norm, proj_in, proj_out
        self._layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = channels_last(x)
        # (B, heads·D, H, W), with heads·D ≤ C
        h = self._proj_in(self._norm(x))
        for layer in self._layers:
            h = layer(h, text)
        return self._proj_out(h, addend=x)
