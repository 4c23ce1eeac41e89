"""The models that a worker serves: the bundled ones and the folders it was given."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from denoised.jobs.request import with_format
from denoised.model.backends.numerics import Precision
from denoised.model.checkpoints.folders import model_name
from denoised.model.errors import CheckpointError
from denoised.model.serving.loading import ZOO, load_for_serving
from denoised.model.serving.protocol import ServedModel

log = logging.getLogger("denoised.worker")

DEFAULT = "fashion-mnist"  # the bundled model that serves requests that name none


def load_models(
    folders: Sequence[Path], *, device: str, max_images: int, precision: Precision = "float32"
) -> dict[str, ServedModel]:
    """Load the bundled models and those of `folders`, by name; the first is the server's default.

    max_images: in one request.

    Raises:
        CheckpointError: for a folder that cannot be served, a device that is not available, a precision that it
            does not support, or two folders with the same name.
    """
    _check_device(device, precision)
    models: dict[str, ServedModel] = {}
    for folder in (*bundled(), *folders):
        name = model_name(folder)
        if name in models:
            raise CheckpointError(f"{folder}: a model named {name!r} is served already; rename one of the folders")
        loaded = load_for_serving(folder, device=device, name=name, max_images=max_images, precision=precision)
        if loaded.fallback is not None:
            log.warning("%s: %s; its evaluations take longer", name, loaded.fallback)
        model = loaded.model
        model.card = model.card.model_copy(update={"numerics": with_format(model.card.numerics)})
        models[name] = model
    return models


def bundled() -> list[Path]:
    """The model folders that come with the project, the default first."""
    folders = [path.parent for path in ZOO.glob("*/model_index.json")]
    return sorted(folders, key=lambda folder: (folder.name != DEFAULT, folder.name))


def _check_device(device: str, precision: Precision) -> None:
    if precision != "float32" and not device.startswith("cuda"):
        raise CheckpointError(f"precision {precision!r} is for CUDA devices; {device!r} serves in float32")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"device {device!r} cannot be used here ({reason})") from error
