"""Kernels that give an image the same bits in a batch of any size, on a CPU.

PyTorch's own kernels do not: at small batches it picks another convolution, and for a matrix product
of few rows another micro-kernel. oneDNN's convolution does, so every convolution and every
linear layer (as a 1×1 convolution) goes through it, with weights packed once into its own
layout. That is also faster; docs/decisions.md has the measurements.

SiLU, Mish and GELU round differently in the last few elements of a vector than in the others. Where PyTorch splits a
tensor depends on its size and on the number of threads, so each image goes through them separately.
Attention and group norms split their work by the whole batch, too.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from denoised.model.backends.comparison import LIMITS
from denoised.model.errors import KernelError
from denoised.model.networks.text_encoder.text_encoder import CausalDotProduct, QuickGelu
from denoised.model.networks.unet.unet_layers import DotProductAttention

Network = TypeVar("Network", bound=nn.Module)
PER_IMAGE = DotProductAttention | CausalDotProduct | QuickGelu | nn.GroupNorm


def can_pack(device: torch.device) -> bool:
    """Whether the kernels are available: oneDNN, on a CPU."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available()


def pack(network: Network) -> Network:
    """Replace the layers whose kernels depend on the batch, in place. For inference only, in float32."""
    for name, child in list(network.named_children()):
        if isinstance(child, nn.Conv2d):
            setattr(network, name, PackedConv2d(child))
        elif isinstance(child, nn.Linear):
            setattr(network, name, PackedLinear(child))
        elif isinstance(child, nn.SiLU | nn.Mish | nn.GELU):
            setattr(network, name, PerImageActivation(child))
        elif isinstance(child, PER_IMAGE):
            setattr(network, name, PerImage(child))
        elif isinstance(child, nn.ModuleList):
            for index, item in enumerate(child):
                if isinstance(item, nn.Linear):
                    child[index] = PackedLinear(item)
                elif isinstance(item, nn.Conv2d):
                    child[index] = PackedConv2d(item)
                else:
                    pack(item)
        else:
            pack(child)
    return network


def check_packed(name: str, expected: Tensor, alone: Tensor, together: Tensor) -> None:
    """Check the output of packed layers, (B, …) row by row and as one batch, against the network's own.

    Raises:
        KernelError: if they are off by more than rounding, or a row's bits depend on the batch.
    """
    if not torch.equal(together, alone):
        raise KernelError(f"the packed {name} gives a row other bits in a batch of {len(alone)}")
    error, norm = (alone - expected).norm().item(), expected.norm().item()
    if expected.isfinite().all() and not error <= LIMITS["float32"] * norm:
        raise KernelError(
            f"the packed {name} computes another function than the network: it is off by {error / norm:.2g} of the "
            f"output (allowed: {LIMITS['float32']:g})"
        )


class PerImageActivation(nn.Module):
    """An activation, applied to one image at a time."""

    def __init__(self, activation: nn.SiLU | nn.Mish | nn.GELU) -> None:
        super().__init__()
        variants = {
            nn.SiLU: torch.ops.aten.silu.out,
            nn.Mish: torch.ops.aten.mish.out,
            nn.GELU: torch.ops.aten.gelu.out,
        }
        self._out_variant = variants[type(activation)]

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for image, result in zip(x.unbind(), out.unbind(), strict=True):
            # Into the batch's own memory: torch.cat would copy every image once more.
            self._out_variant(image, out=result)
        return out


class PerImage(nn.Module):
    """A layer without an out variant, applied to one image at a time.

    With several threads, PyTorch's attention splits short sequences differently in batches of other sizes, and so does
    its group norm of large channels-last maps.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        if len(inputs[0]) == 1:
            output: Tensor = self._layer(*inputs)
            return output
        # One (1, …) of each input: queries, keys and values of one image belong together.
        images = zip(*(each.split(1) for each in inputs), strict=True)
        return torch.cat([self._layer(*image) for image in images])


class PackedConv2d(nn.Module):
    """A convolution with its weight in oneDNN's layout."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert isinstance(conv.padding, tuple)
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._weight = _packed(conv.weight.detach(), self._geometry)
        self._bias = conv.bias.detach() if conv.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        return _convolve(x, self._weight, self._bias, self._geometry)


class PackedLinear(nn.Module):
    """A linear layer on (B, C) or (B, N, C), as a 1×1 convolution."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._geometry = ([0, 0], [1, 1], [1, 1], 1)
        # (O, I) → (O, I, 1, 1)
        self._weight = _packed(linear.weight.detach()[:, :, None, None].contiguous(), self._geometry)
        self._bias = linear.bias.detach() if linear.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            # (B, C) → (B, C, 1, 1): one pixel.
            y = _convolve(x[:, :, None, None].contiguous(), self._weight, self._bias, self._geometry)
            return y.flatten(1)  # (B, O, 1, 1) → (B, O)
        # (B, N, C) → (B, C, N, 1): tokens are pixels of one column.
        y = _convolve(x.transpose(1, 2).unsqueeze(-1).contiguous(), self._weight, self._bias, self._geometry)
        return y.squeeze(-1).transpose(1, 2)  # (B, O, N, 1) → (B, N, O)


Geometry = tuple[list[int], list[int], list[int], int]


def _packed(weight: Tensor, geometry: Geometry) -> Any:
    padding, stride, dilation, groups = geometry
    # The reordered weight is opaque: only oneDNN's convolution can read it.
    mkldnn = weight.to_mkldnn()
    return torch._C._nn.mkldnn_reorder_conv2d_weight(mkldnn, padding, stride, dilation, groups, None)  # type: ignore[call-arg]


def _convolve(x: Tensor, weight: Any, bias: Tensor | None, geometry: Geometry) -> Tensor:
    padding, stride, dilation, groups = geometry
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, stride, dilation, groups, "none", [], ""
    )
    return y
