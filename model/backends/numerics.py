"""The *numerics* string: what the last bits of a picture depend on beside the request."""

from __future__ import annotations

import platform

import torch

# Kernel paths: `model.backends.native`, `model.backends.packed`, PyTorch itself, `model.backends.graphs`.
NATIVE, PACKED, EAGER, GRAPHS = "native", "packed", "eager", "graphs"


def numerics(device: str, path: str, precision: str = "float32") -> str:
    """Kernel path, torch version, instruction set and number of threads; on a GPU, its name and the precision."""
    version = torch.__version__.split("+")[0]
    if device.startswith("cuda"):
        return f"{path}/torch-{version}/{torch.cuda.get_device_name(device).replace(' ', '-')}/{precision}"
    if device != "cpu":
        return f"{path}/torch-{version}/{device}"
    capability = torch.backends.cpu.get_cpu_capability().replace(" ", "-").lower()
    return f"{path}/torch-{version}/{platform.machine()}-{capability}/{torch.get_num_threads()}-threads"
