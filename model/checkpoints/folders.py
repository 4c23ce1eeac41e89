"""Where the files of a model folder lie, in the two layouts of diffusers.

    a pipeline                                    one model, at the root
    model_index.json                              model_index.json (there or not)
    unet/config.json                              config.json
    unet/diffusion_pytorch_model.safetensors      diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json               scheduler_config.json, or as in a pipeline

This module knows nothing of what the files say, but for the parts that a pipeline lists.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoised.model.errors import CheckpointError

MODEL_INDEX = Path("model_index.json")
SCHEDULER_CONFIG = Path("scheduler/scheduler_config.json")
UNET_CONFIG = Path("unet/config.json")
# What this program runs of a pipeline; anything else (a decoder, a text encoder) would be missed in the picture.
PARTS = ("unet", "scheduler")


@dataclass(frozen=True)
class Layout:
    """unet_config and scheduler_config: files; weights: the folder that holds the U-Net's tensors."""

    unet_config: Path
    scheduler_config: Path
    weights: Path


def find_files(folder: Path) -> Layout:
    """The files of a model folder; they may be missing.

    Raises:
        CheckpointError: when there is no such folder, or its pipeline has parts that are not served.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder")
    if (folder / MODEL_INDEX).exists():
        _check_parts(folder / MODEL_INDEX)
    scheduler = folder / SCHEDULER_CONFIG
    at_root = (folder / "config.json").exists() and not (folder / UNET_CONFIG).exists()
    if not at_root:
        return Layout(folder / UNET_CONFIG, scheduler, folder / UNET_CONFIG.parent)
    return Layout(folder / "config.json", scheduler if scheduler.exists() else folder / scheduler.name, folder)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        CheckpointError: when it is missing or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: no JSON object")
    return content


def _check_parts(path: Path) -> None:
    for part, value in read_json(path).items():
        if part.startswith("_") or part in PARTS or not isinstance(value, list) or not any(value):
            continue
        raise CheckpointError(f"{path}: the pipeline's {part!r} is not supported (supported: {', '.join(PARTS)})")
