"""Replace the modules of a U-Net with native layers. Every module is found by its name in the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from denoised.model.backends.native.embedding_cache import EmbeddingCache
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
from denoised.model.networks.parts import Attention, Downsample, ResnetBlock, Upsample
from denoised.model.networks.unet import UNet


class Conversion:
    """The native layers of one U-Net.

    Attributes:
        kernels: What the layers call; to be compiled when all of them exist.
    """

    def __init__(self, unet: UNet, shape: tuple[int, int, int]) -> None:
        """shape: (C, H, W) of the images whose tiles are chosen."""
        self.kernels = Kernels()
        self._out_widths = _output_widths(unet, shape)
        self._blocks = {name: part for name, part in unet.named_modules() if isinstance(part, ResnetBlock)}
        self._columns = _projection_columns(self._blocks)

    def embedding_cache(self, unet: UNet) -> EmbeddingCache:
        """The projections of all residual blocks as one layer; block `name` reads the columns `_columns[name]`."""
        blocks = list(self._blocks.values())
        layers = [block.time_emb_proj for block in blocks]
        project = self._linear(
            torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        )
        width = sum(layer.out_features for layer in layers)
        return EmbeddingCache(unet.embed, nn.Sequential(per_image(blocks[0].activation), project), width)

    def convert(self, unet: UNet) -> None:
        """Replace the modules of `unet`, in place."""
        unet.conv_norm_out = native_norm(unet.conv_norm_out, unet.conv_act, self.kernels)  # type: ignore[assignment]
        unet.conv_act = nn.Identity()  # type: ignore[assignment]
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
        qkv = self._pointwise([attention.to_q, attention.to_k, attention.to_v], width)
        return NativeAttention(attention, self.kernels, qkv, self._pointwise([attention.to_out[0]], width))

    def _upsample(self, name: str, upsample: Upsample) -> NativeUpsample:
        width = self._out_widths[f"{name}.conv"] // 2 + 1  # of the small image's 2×2 convolution with a border of 1
        bias = upsample.conv.bias.repeat(4) if upsample.conv.bias is not None else None
        return NativeUpsample(self.kernels, self._convolution(subpixel_weights(upsample), bias, 1, 1, width))

    def _conv(self, name: str, conv: nn.Conv2d) -> NativeConv2d:
        assert conv.groups == 1, conv
        assert conv.dilation == (1, 1), conv
        stride, padding = conv.stride[0], conv.padding[0]
        assert isinstance(padding, int)
        return self._convolution(conv.weight, conv.bias, stride, padding, self._out_widths[name])

    def _pointwise(self, layers: Sequence[nn.Module], width: int) -> NativeConv2d:
        """Linear layers on every pixel as one 1×1 convolution, their outputs side by side."""
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        weight, bias = torch.cat([layer.weight for layer in linear]), torch.cat([layer.bias for layer in linear])
        return self._convolution(weight[:, :, None, None], bias, 1, 0, width)

    def _linear(self, weight: Tensor, bias: Tensor | None) -> NativeLinear:
        return NativeLinear(self._convolution(weight[:, :, None, None], bias, 1, 0, 1))

    def _convolution(
        self, weight: Tensor, bias: Tensor | None, stride: int, padding: int, out_width: int
    ) -> NativeConv2d:
        out_channels = weight.shape[0] + -weight.shape[0] % LANES
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


@torch.no_grad()
def _output_widths(unet: UNet, shape: tuple[int, int, int]) -> dict[str, int]:
    """The width of the images that each convolution and each attention returns, by its name."""
    widths: dict[str, int] = {}
    hooks = []
    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d | Attention):

            def record(module: nn.Module, _: object, out: Tensor, name: str = name) -> None:
                widths[name] = out.shape[3]

            hooks.append(module.register_forward_hook(record))
    label = torch.zeros(1, dtype=torch.long) if unet.class_embedding is not None else None
    unet(torch.zeros(1, *shape), torch.ones(1), label)
    for hook in hooks:
        hook.remove()
    return widths
