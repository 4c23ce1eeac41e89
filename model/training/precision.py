"""The precision that a training run computes in."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from denoised.model.networks.unet import UNet
from denoised.model.training.dataset import Dataset

TIMED_BATCH = 32
TIMED_PASSES = 3


def choose_precision(precision: str, net: UNet, dataset: Dataset, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products; "auto" times a forward and backward pass in each and takes the faster.

    float16 is not offered: its gradients underflow without loss scaling, and GPUs on which it is fast (2020 and
    later) are as fast in bfloat16.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision != "auto":
        return dtypes[precision]
    return min(dtypes.values(), key=lambda dtype: _seconds_per_pass(dtype, net, dataset, device))


def _seconds_per_pass(dtype: torch.dtype, net: UNet, dataset: Dataset, device: torch.device) -> float:
    """The shortest of a few passes, after one to warm up; gradients and random state are left as they were."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((TIMED_BATCH, *dataset.images.shape[1:]), generator=generator).to(device)
    t = torch.full((TIMED_BATCH,), 500, device=device)
    labels = torch.zeros(TIMED_BATCH, dtype=torch.long, device=device)
    rng = torch.get_rng_state()  # dropout draws from it
    seconds = [_time_pass(dtype, net, x, t, labels) for _ in range(1 + TIMED_PASSES)]
    net.zero_grad(set_to_none=True)
    torch.set_rng_state(rng)
    return min(seconds[1:])


def _time_pass(dtype: torch.dtype, net: UNet, x: Tensor, t: Tensor, labels: Tensor) -> float:
    start = perf_counter()
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        loss = net(x, t, labels).float().square().mean()
    loss.backward()
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start
