"""A network's convolutions and nothing else: what an evaluation would take if all between them were free.

Each runs on an input of its real shape that lies in oneDNN's blocked layout already, with weights packed for it, and
leaves its output in that layout. Between them nothing is reordered, normed, activated or added.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def all_convolutions(network: nn.Module, *inputs: Tensor) -> Callable[[], list[Tensor]]:
    """One pass through all `nn.Conv2d` of a network, in the order in which an evaluation of `inputs` reaches them.

    It returns their outputs, as oneDNN's tensors.
    """
    prepared = [_prepared(conv, x) for conv, x in _reached(network, inputs)]
    return lambda: [convolve() for convolve in prepared]


def _reached(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[nn.Conv2d, Tensor]]:
    """Every convolution with what it is given, as often as it is called."""
    found: list[tuple[nn.Conv2d, Tensor]] = []

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        found.append((module, arguments[0].detach().clone()))

    hooks = [m.register_forward_pre_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def _prepared(conv: nn.Conv2d, x: Tensor) -> Callable[[], Tensor]:
    padding, stride, dilation = ([int(n) for n in each] for each in (conv.padding, conv.stride, conv.dilation))
    weight = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
        conv.weight.detach().to_mkldnn(), padding, stride, dilation, conv.groups, list(x.shape)
    )
    blocked = _blocked(x)
    bias = conv.bias.detach().to_mkldnn() if conv.bias is not None else None
    return lambda: torch.mkldnn_convolution(blocked, weight, bias, padding, stride, dilation, conv.groups)


def _blocked(x: Tensor) -> Tensor:
    """x in the layout in which oneDNN's convolutions leave their outputs: through one that changes nothing."""
    channels = x.shape[1]
    identity = torch.eye(channels)[:, :, None, None].contiguous().to_mkldnn()
    return torch.mkldnn_convolution(x.contiguous().to_mkldnn(), identity, None, [0, 0], [1, 1], [1, 1], 1)
