"""The *numerics* string: what the last bits of a picture depend on beside the request."""

from __future__ import annotations

import platform

import torch

from model.packing import can_pack


def numerics(device: str) -> str:
    """Kernel path, torch version, instruction set (or GPU) and, on a CPU, the number of threads."""
    version = torch.__version__.split("+")[0]
    if device.startswith("cuda"):
        return f"eager/torch-{version}/{torch.cuda.get_device_name(device).replace(' ', '-')}"
    if device != "cpu":
        return f"eager/torch-{version}/{device}"
    capability = torch.backends.cpu.get_cpu_capability().replace(" ", "-").lower()
    path = "packed" if is_packed(device) else "eager"
    return f"{path}/torch-{version}/{platform.machine()}-{capability}/{torch.get_num_threads()}-threads"


def is_packed(device: str) -> bool:
    """Whether networks on that device run on kernels that are the same at every batch size."""
    return can_pack(torch.device(device))
