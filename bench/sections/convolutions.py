"""A network's convolutions and nothing else: a lower bound on the time of an evaluation.

Each convolution runs on an input of its real shape that is already in oneDNN's blocked layout, with weights packed for
it, and leaves its output in that layout. Nothing is reordered, normalized, activated or added between them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def all_convolutions(network: nn.Module, *inputs: Tensor) -> Callable[[], list[Tensor]]:
    """A function that runs all `nn.Conv2d` of a network, in the order in which an evaluation of `inputs` calls them.

    It returns their outputs as oneDNN tensors.
    """
    prepared = [_prepare(conv, x) for conv, x in _calls(network, inputs)]
    return lambda: [convolve() for convolve in prepared]


def _calls(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[nn.Conv2d, Tensor]]:
    """Every call of a convolution during an evaluation, with its input."""
    calls: list[tuple[nn.Conv2d, Tensor]] = []

    def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        calls.append((module, arguments[0].detach().clone()))

    hooks = [m.register_forward_pre_hook(record) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return calls


def _prepare(conv: nn.Conv2d, x: Tensor) -> Callable[[], Tensor]:
    padding, stride, dilation = ([int(n) for n in each] for each in (conv.padding, conv.stride, conv.dilation))
    weight = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
        conv.weight.detach().to_mkldnn(), padding, stride, dilation, conv.groups, list(x.shape)
    )
    blocked = _to_blocked_layout(x)
    bias = conv.bias.detach().to_mkldnn() if conv.bias is not None else None
    return lambda: torch.mkldnn_convolution(blocked, weight, bias, padding, stride, dilation, conv.groups)


def _to_blocked_layout(x: Tensor) -> Tensor:
    """x in the layout that oneDNN's convolutions choose for their outputs: the output of an identity convolution."""
    channels = x.shape[1]
    identity = torch.eye(channels)[:, :, None, None].contiguous().to_mkldnn()
    return torch.mkldnn_convolution(x.contiguous().to_mkldnn(), identity, None, [0, 0], [1, 1], [1, 1], 1)
