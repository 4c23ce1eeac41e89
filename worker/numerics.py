"""The *numerics* string: what the last bits of a picture depend on beside the request."""

from __future__ import annotations

import platform

import torch

NATIVE, PACKED, EAGER = "native", "packed", "eager"  # kernel paths: `model.native`, `model.packing`, PyTorch's own


def numerics(device: str, path: str) -> str:
    """Kernel path, torch version, instruction set (or GPU) and, on a CPU, the number of threads."""
    version = torch.__version__.split("+")[0]
    if device.startswith("cuda"):
        return f"{path}/torch-{version}/{torch.cuda.get_device_name(device).replace(' ', '-')}"
    if device != "cpu":
        return f"{path}/torch-{version}/{device}"
    capability = torch.backends.cpu.get_cpu_capability().replace(" ", "-").lower()
    return f"{path}/torch-{version}/{platform.machine()}-{capability}/{torch.get_num_threads()}-threads"
