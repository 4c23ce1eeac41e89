"""Find the files of a model folder, in the two layouts of diffusers.

    a pipeline                                    one model, at the root
    model_index.json                              model_index.json (optional)
    unet/config.json                              config.json
    unet/diffusion_pytorch_model.safetensors      diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json               scheduler_config.json, or as in a pipeline

This module does not know what the files mean, except for the parts that a pipeline lists. It imports no torch.
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
# The parts of a pipeline that this program runs.
# Ignoring another one (a decoder, a text encoder) would give wrong images.
PARTS = ("unet", "scheduler")


@dataclass(frozen=True)
class ModelFiles:
    """Where the files of a model are.

    Attributes:
        unet_config: the U-Net's `config.json`.
        scheduler_config: `scheduler_config.json`.
        weights: the folder that holds the U-Net's tensors.
    """

    unet_config: Path
    scheduler_config: Path
    weights: Path


def find_files(folder: Path) -> ModelFiles:
    """The files of a model folder, whether or not they exist.

    Raises:
        CheckpointError: if there is no such folder, or its pipeline has parts that are not supported.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder")
    if (folder / MODEL_INDEX).exists():
        _check_parts(folder / MODEL_INDEX)
    scheduler = folder / SCHEDULER_CONFIG
    at_root = (folder / "config.json").exists() and not (folder / UNET_CONFIG).exists()
    if not at_root:
        return ModelFiles(folder / UNET_CONFIG, scheduler, folder / UNET_CONFIG.parent)
    return ModelFiles(folder / "config.json", scheduler if scheduler.exists() else folder / scheduler.name, folder)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: if the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return content


def _check_parts(path: Path) -> None:
    for part, value in read_json(path).items():
        if part.startswith("_") or part in PARTS or not isinstance(value, list) or not any(value):
            continue
        raise CheckpointError(f"{path}: the pipeline's {part!r} is not supported (supported: {', '.join(PARTS)})")
