"""The *numerics* string: what the last bits of a picture depend on besides the request."""

from __future__ import annotations

import platform
from typing import Literal, get_args

import torch

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Backends: `model.backends.native`, `model.backends.packed`, PyTorch's own kernels, the same for each image by itself
# (`model.backends.text_backend`), `model.backends.tiled_graphs`.
NATIVE, PACKED, EAGER, PER_IMAGE, GRAPHS = "native", "packed", "eager", "per-image", "graphs"


def fixed_batches(size: int) -> str:
    """The name of PyTorch's own kernels for batches of one size (`model.backends.fixed_batch`)."""
    return f"batches-of-{size}"


def numerics(device: str, backend: str, precision: str = "float32") -> str:
    """Backend, torch version, instruction set and number of threads; on a GPU, its name and the precision.

    On a CPU, the precision is named unless it is float32.
    """
    version = torch.__version__.split("+")[0]
    if device.startswith("cuda"):
        return f"{backend}/torch-{version}/{torch.cuda.get_device_name(device).replace(' ', '-')}/{precision}"
    if device != "cpu":
        return f"{backend}/torch-{version}/{device}"
    capability = torch.backends.cpu.get_cpu_capability().replace(" ", "-").lower()
    threads = f"{torch.get_num_threads()}-threads" + ("" if precision == "float32" else f"/{precision}")
    return f"{backend}/torch-{version}/{platform.machine()}-{capability}/{threads}"


def with_kernels(unet: str, *, text: str, decoder: str) -> str:
    """The string of a text model: `native+packed+packed/…` for its U-Net, its text encoders and its decoder.

    unet: the string of the U-Net alone; text, decoder: names of backends.
    """
    backend, rest = unet.split("/", 1)
    return f"{backend}+{text}+{decoder}/{rest}"
