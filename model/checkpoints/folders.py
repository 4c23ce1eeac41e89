"""Find the files of a model folder, in the two layouts of diffusers.

    a pipeline                                    one model, at the root
    model_index.json                              model_index.json (optional)
    unet/config.json                              config.json
    unet/diffusion_pytorch_model.safetensors      diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json               scheduler_config.json, or as in a pipeline

This module does not know what the files mean, except for the parts that a pipeline lists. It imports no torch.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from denoised.model.bounded_files import read_json
from denoised.model.errors import CheckpointError, abbreviate

MODEL_INDEX = Path("model_index.json")
SCHEDULER_CONFIG = Path("scheduler/scheduler_config.json")
UNET_CONFIG = Path("unet/config.json")
# The parts of a pipeline that this program runs.
# Ignoring another one (a decoder, a text encoder) would give wrong images.
PARTS = ("unet", "scheduler")
HUB_SNAPSHOT = re.compile(r"models--[^/]+--([^/]+)/snapshots/[0-9a-f]{40}")


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


def model_name(folder: Path) -> str:
    """The name that a folder was given: a symbolic link keeps its own.

    For a snapshot in the cache of `huggingface_hub` it is the model's name, without its owner.

    Raises:
        CheckpointError: for a name that is not text, or has characters that no log line or URL should contain.
    """
    name = os.path.basename(os.path.abspath(folder))  # noqa: PTH100, PTH119, pathlib keeps ".." or follows links
    if (snapshot := HUB_SNAPSHOT.fullmatch("/".join(Path(os.path.abspath(folder)).parts[-3:]))) is not None:  # noqa: PTH100
        name = snapshot[1]
    if not name.isprintable() or not name:
        raise CheckpointError(f"{folder}: a model is served under its folder's name, and {name!r} is not printable")
    return name


def find_files(folder: Path) -> ModelFiles:
    """The files of a model folder, whether or not they exist.

    Raises:
        CheckpointError: if this is not a model folder, or its pipeline has parts that are not supported.
    """
    _check_folder(folder)
    if (folder / MODEL_INDEX).exists():
        _check_parts(folder / MODEL_INDEX)
    scheduler = folder / SCHEDULER_CONFIG
    at_root = (folder / "config.json").exists() and not (folder / UNET_CONFIG).exists()
    if not at_root:
        return ModelFiles(folder / UNET_CONFIG, scheduler, folder / UNET_CONFIG.parent)
    if not scheduler.exists():
        scheduler = folder / scheduler.name
    if not scheduler.exists() and (folder.absolute().parent / SCHEDULER_CONFIG).exists():
        raise CheckpointError(f"{folder}: is a part of a model folder: name the folder that contains it")
    return ModelFiles(folder / "config.json", scheduler, folder)


def _check_folder(folder: Path) -> None:
    """Refuse what is not a folder of a model, and say what to name instead."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{folder}: the path is not UTF-8, as safetensors needs it") from error
    try:
        empty = next(folder.iterdir(), None) is None
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(f"{folder}: no such model folder") from error
    except NotADirectoryError as error:
        message = f"{folder}: is a file, not a model folder: name a folder with unet/ and scheduler/"
        raise CheckpointError(message) from error
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error
    if empty:
        raise CheckpointError(f"{folder}: is empty: a model folder contains unet/ and scheduler/")
    entries = (MODEL_INDEX, UNET_CONFIG.parent, UNET_CONFIG.name, SCHEDULER_CONFIG.parent)
    if not any((folder / name).exists() for name in entries):
        raise CheckpointError(
            f"{folder}: is not a model folder: it contains neither {MODEL_INDEX} nor unet/ nor config.json"
        )


def _check_parts(path: Path) -> None:
    parts = {name: value for name, value in read_json(path).items() if isinstance(value, list) and any(value)}
    if "text_encoder" in parts:
        raise CheckpointError(
            f"{path}: is a text-to-image pipeline, which this command does not take (supported: models of pixels)"
        )
    for part in parts:
        if not part.startswith("_") and part not in PARTS:
            raise CheckpointError(
                f"{path}: the pipeline's {abbreviate(part)} is not supported (supported: {', '.join(PARTS)})"
            )
