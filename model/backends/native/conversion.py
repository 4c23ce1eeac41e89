"""Replace the modules of a U-Net with native layers. Every module is found by its name in the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from denoised.model.backends.native.kernels import Kernels
from denoised.model.backends.native.layers import (
    NativeAttention,
    NativeConv2d,
    NativeDownsample,
    NativeLinear,
    NativeResnetBlock,
    NativeUpsample,
    native_norm,
    per_image,
    subpixel_weights,
)
from denoised.model.backends.native.tiles import LANES
from denoised.model.backends.native.transformers.text_projection import TextColumns, TextProjection
from denoised.model.backends.native.transformers.transformer_layers import (
    LayerParts,
    NativeLayerNorm,
    NativeSelfAttention,
    NativeSpatialTransformer,
    NativeTextAttention,
    NativeTransformerLayer,
)
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.transformer import (
    GatedLinear,
    SpatialTransformer,
    TokenAttention,
    TransformerLayer,
)
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_layers import Attention, Downsample, ResnetBlock, Upsample

TEXT_TILE = 4  # a text's tokens are not a feature map: its tile is that of a map of 4×4


class NativeConversion:
    """The native layers of one U-Net.

    Attributes:
        kernels: What the layers call; to be compiled when all of them exist.
    """

    def __init__(self, unet: UNet | TextUNet, example: Sequence[Tensor]) -> None:
        """example: inputs of the network's `evaluate` for one image, of the size whose tiles are chosen."""
        self.kernels = Kernels()
        self._out_widths = _output_widths(unet, example)
        self._blocks = {name: part for name, part in unet.named_modules() if isinstance(part, ResnetBlock)}
        self._columns = _projection_columns(self._blocks)
        self._text_attentions = _text_attentions(unet)
        self._text_columns = _text_columns(self._text_attentions)

    @property
    def projected_channels(self) -> int:
        """Columns of `embedding_projection`."""
        return sum(block.time_emb_proj.out_features for block in self._blocks.values())

    def embedding_projection(self) -> nn.Module:
        """(B, embed_dim) → (B, projected_channels): the activation, and the projections of all residual blocks as one
        layer; block `name` reads the columns `_columns[name]`."""
        blocks = list(self._blocks.values())
        layers = [block.time_emb_proj for block in blocks]
        # (projected_channels, embed_dim), and (projected_channels,).
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        # Every block applies the same activation to the same embedding, so once is enough.
        return nn.Sequential(per_image(blocks[0].activation), self._linear(weight, bias))

    def text_projection(self) -> TextProjection:
        """The keys and values of all attentions to the text as one layer; the attentions read their columns."""
        layers = [layer for each in self._text_attentions.values() for layer in (each.to_k, each.to_v)]
        project = self._pointwise(layers, TEXT_TILE)
        return TextProjection(project, [each.to_k.out_features for each in self._text_attentions.values()])

    def convert(self, unet: UNet | TextUNet) -> None:
        """Replace the modules of `unet`, in place."""
        unet.conv_norm_out = native_norm(unet.conv_norm_out, unet.conv_act, self.kernels)  # type: ignore[assignment]
        # The activation is part of the norm before it.
        unet.conv_act = nn.Identity()
        self._convert_children(unet, "")

    def _convert_children(self, parent: nn.Module, prefix: str) -> None:
        for child_name, child in list(parent.named_children()):
            name = prefix + child_name
            native = self._native(name, child)
            if native is None:
                self._convert_children(child, f"{name}.")
            elif isinstance(parent, nn.ModuleList):
                parent[int(child_name)] = native
            else:
                setattr(parent, child_name, native)

    def _native(self, name: str, part: nn.Module) -> nn.Module | None:
        """What replaces a part; None if its children are converted instead."""
        if isinstance(part, ResnetBlock):
            return self._resnet_block(name, part)
        if isinstance(part, Attention):
            return self._attention(name, part)
        if isinstance(part, Upsample):
            return self._upsample(name, part)
        if isinstance(part, Downsample):
            return NativeDownsample(part, self.kernels, self._conv(f"{name}.conv", part.conv))
        if isinstance(part, nn.Conv2d):
            return self._conv(name, part)
        if isinstance(part, nn.Linear):
            return self._linear(part.weight, part.bias)
        if isinstance(part, nn.GroupNorm):
            return native_norm(part, nn.Identity(), self.kernels)
        if isinstance(part, SpatialTransformer):
            return self._transformer(name, part)
        return per_image(part) if isinstance(part, nn.SiLU | nn.Mish) else None

    def _resnet_block(self, name: str, block: ResnetBlock) -> NativeResnetBlock:
        shortcut = block.conv_shortcut
        return NativeResnetBlock(
            block,
            self._columns[name],
            self.kernels,
            self._conv(f"{name}.conv1", block.conv1),
            self._conv(f"{name}.conv2", block.conv2),
            self._conv(f"{name}.conv_shortcut", shortcut) if shortcut is not None else None,
        )

    def _attention(self, name: str, attention: Attention) -> NativeAttention:
        width = self._out_widths[name]
        # One pass over x instead of three: (B, C, H, W) → (B, 3·heads·D, H, W).
        qkv = self._pointwise([attention.to_q, attention.to_k, attention.to_v], width)
        return NativeAttention(attention, self.kernels, qkv, self._pointwise([attention.to_out[0]], width))

    def _transformer(self, name: str, transformer: SpatialTransformer) -> NativeSpatialTransformer:
        width = self._out_widths[name]
        layers = [
            self._transformer_layer(f"{name}.transformer_blocks.{k}", layer, width)
            for k, layer in enumerate(transformer.transformer_blocks)
            if isinstance(layer, TransformerLayer)
        ]
        norm = native_norm(transformer.norm, nn.Identity(), self.kernels)
        proj_in, proj_out = (self._pointwise([each], width) for each in (transformer.proj_in, transformer.proj_out))
        return NativeSpatialTransformer(norm, proj_in, layers, proj_out)

    def _transformer_layer(self, name: str, layer: TransformerLayer, width: int) -> NativeTransformerLayer:
        gate, out = layer.ff.net[0], layer.ff.net[2]
        assert isinstance(gate, GatedLinear)
        # `net` is GEGLU, dropout, linear (Shazeer 2020, equation 6): only two of the three have weights.
        norm1, norm2, norm3 = (NativeLayerNorm(norm, self.kernels) for norm in (layer.norm1, layer.norm2, layer.norm3))
        if layer.only_cross_attention:
            attn1: NativeSelfAttention | NativeTextAttention = self._text_attention(f"{name}.attn1", layer.attn1, width)
        else:
            attn1 = self._self_attention(layer.attn1, width)
        attn2 = self._text_attention(f"{name}.attn2", layer.attn2, width)
        # (B, C, H, W) → (B, 2·inner, H, W), value and gate; and (B, inner, H, W) → (B, C, H, W).
        gate_conv, out_conv = self._pointwise([gate.proj], width), self._pointwise([out], width)
        return NativeTransformerLayer(LayerParts(norm1, attn1, norm2, attn2, norm3, gate_conv, out_conv), self.kernels)

    def _self_attention(self, attention: TokenAttention, width: int) -> NativeSelfAttention:
        qkv = self._pointwise([attention.to_q, attention.to_k, attention.to_v], width)
        return NativeSelfAttention(attention.heads, self.kernels, qkv, self._pointwise([attention.to_out[0]], width))

    def _text_attention(self, name: str, attention: TokenAttention, width: int) -> NativeTextAttention:
        query, out = (self._pointwise([layer], width) for layer in (attention.to_q, attention.to_out[0]))
        return NativeTextAttention(attention.heads, self.kernels, query, out, self._text_columns[name])

    def _upsample(self, name: str, upsample: Upsample) -> NativeUpsample:
        width = self._out_widths[f"{name}.conv"] // 2 + 1  # of the small image's 2×2 convolution with a border of 1
        # Once for each of the four phases.
        bias = upsample.conv.bias.repeat(4) if upsample.conv.bias is not None else None
        # Stride 1 and a border of 1, so that the phases of the first and the last row have their pixels.
        return NativeUpsample(self.kernels, self._convolution(subpixel_weights(upsample), bias, 1, 1, width))

    def _conv(self, name: str, conv: nn.Conv2d) -> NativeConv2d:
        assert conv.groups == 1, conv
        assert conv.dilation == (1, 1), conv
        stride, padding = conv.stride[0], conv.padding[0]
        assert isinstance(padding, int)
        return self._convolution(conv.weight, conv.bias, stride, padding, self._out_widths[name])

    def _pointwise(self, layers: Sequence[nn.Module], width: int) -> NativeConv2d:
        """Linear layers on every pixel as one 1×1 convolution, their outputs side by side."""
        weights = [layer.weight.flatten(1) for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
        biases = [layer.bias for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
        bias = torch.cat([bias for bias in biases if bias is not None]) if biases[0] is not None else None
        # (ΣO, I) → (ΣO, I, 1, 1): stride 1, no border.
        return self._convolution(torch.cat(weights)[:, :, None, None], bias, 1, 0, width)

    def _linear(self, weight: Tensor, bias: Tensor | None) -> NativeLinear:
        # A row of the batch is a map of one pixel: (B, I) → (B, I, 1, 1).
        return NativeLinear(self._convolution(weight[:, :, None, None], bias, 1, 0, 1))

    def _convolution(
        self, weight: Tensor, bias: Tensor | None, stride: int, padding: int, out_width: int
    ) -> NativeConv2d:
        out_channels = weight.shape[0] + -weight.shape[0] % LANES
        if weight.shape[2] == 1 and stride == 1:
            out_width *= out_width  # it computes the whole map as a few long rows
        tile = self.kernels.tile(weight.shape[2], stride, weight.shape[1], out_channels, out_width)
        return NativeConv2d(weight.detach(), bias, padding, tile, self.kernels)


def _projection_columns(blocks: dict[str, ResnetBlock]) -> dict[str, slice]:
    """Which columns of all projections, side by side, belong to each block, by its name."""
    columns, start = {}, 0
    for name, block in blocks.items():
        stop = start + block.time_emb_proj.out_features
        columns[name] = slice(start, stop)
        start = stop
    return columns


def _text_attentions(unet: nn.Module) -> dict[str, TokenAttention]:
    """All attentions to the text, by their names."""
    attentions = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, TransformerLayer):
            if layer.only_cross_attention:
                attentions[f"{name}.attn1"] = layer.attn1
            attentions[f"{name}.attn2"] = layer.attn2
    return attentions


def _text_columns(attentions: Mapping[str, TokenAttention]) -> dict[str, TextColumns]:
    """Which columns of the keys and values of a text belong to each attention, by its name."""
    total = sum(attention.to_k.out_features for attention in attentions.values())
    columns, start = {}, 0
    for name, attention in attentions.items():
        columns[name] = TextColumns(start, attention.to_k.out_features, total)
        start += attention.to_k.out_features
    return columns


@torch.no_grad()
def _output_widths(unet: UNet | TextUNet, example: Sequence[Tensor]) -> dict[str, int]:
    """The width of the images that each convolution, attention and transformer returns, by its name."""
    widths: dict[str, int] = {}
    hooks = []
    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d | Attention | SpatialTransformer):

            def record(module: nn.Module, _: object, out: Tensor, name: str = name) -> None:
                widths[name] = out.shape[3]

            hooks.append(module.register_forward_hook(record))
    # The sizes of all maps follow from one evaluation; no rule for them is written twice.
    unet.evaluate(*example)
    for hook in hooks:
        hook.remove()
    return widths
