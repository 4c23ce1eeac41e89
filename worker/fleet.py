"""The models that a worker serves: the bundled ones and the folders it was given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import ZOO, load_model
from model.denoiser import PixelModel
from model.errors import CheckpointError
from model.packing import pack
from worker.numerics import is_packed, numerics

DEFAULT = "fashion-mnist"  # of the bundled models, what a request gets that names none


def load_models(folders: Sequence[Path], *, device: str, max_images: int) -> dict[str, PixelModel]:
    """Models by name; the first is the server's default.

    Raises:
        CheckpointError: for a folder that cannot be served, a device that is not there, or two
            folders of one name.
    """
    _check_device(device)
    models: dict[str, PixelModel] = {}
    for folder in (*bundled(), *folders):
        name = folder.resolve().name
        if name in models:
            raise CheckpointError(f"{folder}: a model named {name!r} is served already; rename one of the folders")
        models[name] = load_model(folder, device=device, name=name, max_images=max_images, numerics=numerics(device))
        if is_packed(device):
            pack(models[name].unet)
    return models


def bundled() -> list[Path]:
    """The model folders that come with the project, the default first."""
    folders = [path.parent for path in ZOO.glob("*/model_index.json")]
    return sorted(folders, key=lambda folder: (folder.name != DEFAULT, folder.name))


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"device {device!r} cannot be used here ({reason})") from error
