"""The precision that a training run computes in."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor, nn

TIMED_PASSES = 3


def choose_precision(precision: str, net: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> torch.dtype:
    """The dtype of the matrix products; "auto" times a forward and backward pass in each and takes the faster.

    float16 is not offered: its gradients underflow without loss scaling, and GPUs on which it is fast (2020 and
    later) are as fast in bfloat16.

    loss: evaluates the network on a batch of typical size.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision != "auto":
        return dtypes[precision]
    return min(dtypes.values(), key=lambda dtype: _seconds_per_pass(dtype, net, loss, device))


def _seconds_per_pass(dtype: torch.dtype, net: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> float:
    """The shortest of a few passes, after one to warm up; gradients and random state are left as they were."""
    rng = torch.get_rng_state()  # dropout draws from it
    seconds = [_time_pass(dtype, loss, device) for _ in range(1 + TIMED_PASSES)]
    net.zero_grad(set_to_none=True)
    torch.set_rng_state(rng)
    return min(seconds[1:])


def _time_pass(dtype: torch.dtype, loss: Callable[[], Tensor], device: torch.device) -> float:
    start = perf_counter()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        value = loss()
    value.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start
