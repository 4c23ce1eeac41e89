"""The CUDA devices that a worker sees (`python -m denoised.worker.devices` lists them), and the name of its own."""

from __future__ import annotations

import json
import os
import sys

import torch


def cuda_identifiers() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each device that this process sees: a number, or the id of a device."""
    return [_identifier(index) for index in range(torch.cuda.device_count())]


def device_label(device: str) -> str:
    """A device as reports name it: the same name whether or not the process sees the others."""
    parsed = torch.device(device)
    if parsed.type != "cuda":
        return str(parsed)
    index = parsed.index if parsed.index is not None else 0
    return f"cuda:{_identifier(index)}"


def _identifier(index: int) -> str:
    visible = [item.strip() for item in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if item.strip()]
    return visible[index] if index < len(visible) else str(index)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(cuda_identifiers()) + "\n")
