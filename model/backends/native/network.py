"""A U-Net whose parts are compiled kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from denoised.model.backends.native.embedding_cache import EmbeddingCache
from denoised.model.backends.native.kernels import LANES, Kernels
from denoised.model.backends.native.layers import (
    NativeAttention,
    NativeConv2d,
    NativeDownsample,
    NativeLinear,
    NativeResnetBlock,
    NativeUpsample,
    by_image,
    last,
    native_norm,
    weights_by_place,
)
from denoised.model.backends.native.recorded_graph import RecordedGraph
from denoised.model.networks.parts import Attention, Downsample, ResnetBlock, Upsample
from denoised.model.networks.unet import UNet

MIN_PIPELINED = 8


class NativeUNet(nn.Module):
    """The same function as the `UNet` it is made of, for inference on a CPU, float32.

    shape: (C, H, W) of the pictures it is compiled for; it takes larger ones too. The U-Net stays as it is.

    Raises:
        KernelError: where the kernels cannot be compiled.
    """

    def __init__(self, unet: UNet, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config = unet.config
        self.class_embedding = unet.class_embedding
        unet = deepcopy(unet)
        conversion = _Conversion(_widths(unet, shape))
        self._told = conversion.told(unet)
        conversion.norm_and_activation(unet, "conv_norm_out", "conv_act")
        conversion.children_of(unet)
        self._unet = unet
        self._kernels = conversion.kernels
        self._kernels.compile()
        self._shape = torch.Size(shape)
        self._program: RecordedGraph | None = None
        self._recordable = True

    @property
    def min_pipelined_images(self) -> int | None:
        """See `Backend`: as many images as keep all threads busy in both halves, and enough for an evaluation to take
        longer than the turn around it."""
        return max(MIN_PIPELINED, 2 * torch.get_num_threads()) if self._recordable else None

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """As `UNet.forward`; not by two threads at a time."""
        told = self._told(t, label)
        x = last(x)
        program = self._program_for(x, t, told)
        return (program.run(x, told) if program is not None else self._unet.evaluate(x, t, told)).contiguous()

    def begin(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Callable[[], Tensor]:
        """The same; what is returned waits for it where it can be made meanwhile."""
        told = self._told(t, label)
        x = last(x)
        program = self._program_for(x, t, told)
        if program is None:
            output = self._unet.evaluate(x, t, told)
            return output.contiguous
        result = program.begin(x, told)
        return lambda: result().contiguous()

    def _program_for(self, x: Tensor, t: Tensor, told: Tensor) -> RecordedGraph | None:
        """What makes pictures of that shape, if anything does."""
        if x.shape[1:] != self._shape:
            return None
        if self._recordable and self._program is None:
            self._record(x[:1], t[:1], told[:1])
        return self._program

    def _record(self, x: Tensor, t: Tensor, told: Tensor) -> None:
        """Make a program from one image, (1, …); none for a network that does more than call kernels."""
        with self._kernels.recorded() as (calls, made):
            inputs = [self._kernels.empty(*x.shape), torch.empty_like(told)]
            inputs[0].copy_(x)
            inputs[1].copy_(told)
            output = self._unet.evaluate(inputs[0], t, inputs[1])
            self._recordable = _memory(output) in {_memory(tensor) for tensor in made}
            if not self._recordable:
                return
            program = RecordedGraph(self._kernels.runner, calls, [*made, inputs[1]], inputs, output)
        # What was done beside the kernels is missing in the program: then it gives something else for others.
        x, told = last(torch.linspace(-1, 1, 2 * x.numel()).view(2, *x.shape[1:])), torch.cat([told / 2, told / 3])
        self._recordable = torch.equal(program.run(x, told), self._unet.evaluate(x, t.repeat(2), told))
        self._program = program if self._recordable else None


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@torch.no_grad()
def _widths(unet: UNet, shape: tuple[int, int, int]) -> dict[nn.Module, int]:
    """How wide the pictures are that each convolution and each attention returns."""
    widths: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: object, out: Tensor) -> None:
        widths[module] = out.shape[3]

    seen = [module for module in unet.modules() if isinstance(module, nn.Conv2d | Attention)]
    hooks = [module.register_forward_hook(note) for module in seen]
    label = torch.zeros(1, dtype=torch.long) if unet.class_embedding is not None else None
    unet(torch.zeros(1, *shape), torch.ones(1), label)
    for hook in hooks:
        hook.remove()
    return widths


class _Conversion:
    """Goes through a network and puts native parts in the places of others."""

    def __init__(self, widths: dict[nn.Module, int]) -> None:
        self.kernels = Kernels()
        self._widths = widths
        self._columns = 0

    def told(self, unet: UNet) -> EmbeddingCache:
        """Of all its residual blocks, in their order."""
        blocks = [block for block in unet.modules() if isinstance(block, ResnetBlock)]
        layers = [block.time_emb_proj for block in blocks]
        project = self._linear(
            torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        )
        width = sum(layer.out_features for layer in layers)
        return EmbeddingCache(unet.embed, nn.Sequential(by_image(blocks[0].activation), project), width)

    def norm_and_activation(self, parent: nn.Module, norm: str, activation: str) -> None:
        """One pass for two that follow each other."""
        both = native_norm(getattr(parent, norm), getattr(parent, activation), self.kernels)
        setattr(parent, norm, both)
        setattr(parent, activation, nn.Identity())

    def children_of(self, parent: nn.Module) -> None:
        for name, child in list(parent.named_children()):
            native = self._native(child)
            if native is None:
                self.children_of(child)
            elif isinstance(parent, nn.ModuleList):
                parent[int(name)] = native
            else:
                setattr(parent, name, native)

    def _native(self, part: nn.Module) -> nn.Module | None:
        """What takes a part's place; None where its children are to be looked at."""
        if isinstance(part, ResnetBlock):
            return self._resnet_block(part)
        if isinstance(part, Attention):
            return self._attention(part)
        if isinstance(part, Upsample):
            return self._upsample(part)
        if isinstance(part, Downsample):
            return NativeDownsample(part, self.kernels, self._conv(part.conv))
        if isinstance(part, nn.Conv2d):
            return self._conv(part)
        if isinstance(part, nn.Linear):
            return self._linear(part.weight, part.bias)
        if isinstance(part, nn.GroupNorm):
            return native_norm(part, nn.Identity(), self.kernels)
        return by_image(part) if isinstance(part, nn.SiLU | nn.Mish) else None

    def _resnet_block(self, block: ResnetBlock) -> NativeResnetBlock:
        """Its columns of what is told follow those of the block before it."""
        start = self._columns
        self._columns += block.time_emb_proj.out_features
        shortcut = block.conv_shortcut
        return NativeResnetBlock(
            block,
            slice(start, self._columns),
            self.kernels,
            self._conv(block.conv1),
            self._conv(block.conv2),
            self._conv(shortcut) if shortcut is not None else None,
        )

    def _attention(self, attention: Attention) -> NativeAttention:
        width = self._widths[attention]
        qkv = self._one_by_one([attention.to_q, attention.to_k, attention.to_v], width)
        return NativeAttention(attention, self.kernels, qkv, self._one_by_one([attention.to_out[0]], width))

    def _upsample(self, upsample: Upsample) -> NativeUpsample:
        width = self._widths[upsample.conv] // 2 + 1
        bias = upsample.conv.bias.repeat(4) if upsample.conv.bias is not None else None
        return NativeUpsample(self.kernels, self._convolution(weights_by_place(upsample), bias, 1, 1, width))

    def _conv(self, conv: nn.Conv2d) -> NativeConv2d:
        assert conv.groups == 1, conv
        assert conv.dilation == (1, 1), conv
        stride, padding = conv.stride[0], conv.padding[0]
        assert isinstance(padding, int)
        return self._convolution(conv.weight, conv.bias, stride, padding, self._widths[conv])

    def _one_by_one(self, layers: Sequence[nn.Module], width: int) -> NativeConv2d:
        """Linear layers beside each other, on the pixels of pictures."""
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        weight, bias = torch.cat([layer.weight for layer in linear]), torch.cat([layer.bias for layer in linear])
        return self._convolution(weight[:, :, None, None], bias, 1, 0, width)

    def _linear(self, weight: Tensor, bias: Tensor | None) -> NativeLinear:
        return NativeLinear(self._convolution(weight[:, :, None, None], bias, 1, 0, 1))

    def _convolution(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int, width: int) -> NativeConv2d:
        """width: of what it returns."""
        out_channels = weight.shape[0] + -weight.shape[0] % LANES
        tile = self.kernels.tile(weight.shape[2], stride, weight.shape[1], out_channels, width)
        return NativeConv2d(weight.detach(), bias, padding, tile, self.kernels)
