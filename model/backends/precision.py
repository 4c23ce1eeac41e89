"""The precision of a network: the type of its layers, and how a CUDA device multiplies float32 numbers.

`float32` is IEEE float32; `tf32` keeps 10 bits of each factor's mantissa, on CUDA devices; `bfloat16` and `float16` are
the types of all layers. Inputs and outputs of a network are float32 in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

from denoised.model.backends.numerics import Precision

Network = TypeVar("Network", bound=nn.Module)

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SUPPORTED: dict[str, tuple[Precision, ...]] = {
    "cuda": ("float32", "tf32", "bfloat16", "float16"),
    # A CPU multiplies float16 by converting it, which takes several times as long as float32.
    "cpu": ("float32", "bfloat16"),
}
AMPERE = (8, 0)  # the first compute capability with units for tf32 and bfloat16


def precision_refusal(device: str, precision: Precision) -> str | None:
    """Why a device that can be used does not evaluate networks in a precision; None if it does."""
    kind = torch.device(device).type
    supported = SUPPORTED.get(kind, ("float32",))
    if precision not in supported:
        return f"precision = {precision!r} is not available on {device!r} (available: {', '.join(supported)})"
    if kind == "cuda" and precision in ("tf32", "bfloat16"):
        capability = torch.cuda.get_device_capability(device)
        if capability < AMPERE:
            has = ".".join(map(str, capability))
            return (
                f"precision = {precision!r} needs a GPU of compute capability 8.0; {device!r} has {has} "
                "(available: float32, float16)"
            )
    return None


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Run kernels that multiply in this precision.

    cuDNN chooses them by its rules, not by trying them out, so that it chooses the same ones each time.
    """
    tf32 = precision == "tf32"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def set_arithmetic(precision: Precision) -> None:
    """Have all later kernels of this process multiply in this precision, whichever thread launches them."""
    tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def converted(network: Network, precision: Precision) -> Network:
    """The network itself, or for a half precision a copy with all layers in it."""
    dtype = DTYPES[precision]
    return network if dtype == torch.float32 else deepcopy(network).to(dtype)
