"""The models that a worker serves: the bundled ones and the folders it was given."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from denoised.jobs.numerics import with_format
from denoised.model.backends.numerics import Precision
from denoised.model.backends.precision import precision_refusal
from denoised.model.checkpoints.folders import model_name, model_source
from denoised.model.checkpoints.weight_count import weight_bytes
from denoised.model.errors import CheckpointError
from denoised.model.serving.control_memory import control_bytes
from denoised.model.serving.loading import ZOO, load_for_serving
from denoised.model.serving.protocol import ServedModel

log = logging.getLogger("denoised.worker")

# The bundled models in the order in which they are listed. A request that names none is for the first that takes it.
ORDER = ("emoji", "fashion-mnist", "digits", "fashion-mnist-consistency")


def load_models(
    folders: Sequence[Path],
    *,
    device: str,
    max_images: int,
    precision: Precision = "float32",
    loras: Path | None = None,
    controls: Path | None = None,
    budget: int | None = None,
) -> dict[str, ServedModel]:
    """Load the bundled models and those of `folders`, by name, in the order in which they are listed.

    max_images: in one request.
    loras, controls: folders of low-rank adapters and of ControlNets for the models that take a prompt.
    budget: bytes of weights; models beyond it are left out. None is no limit.

    Raises:
        CheckpointError: if no model fits into the budget; for a folder that cannot be served or read, a device that is
            not available, a precision that it does not support, or two folders with the same name.
    """
    check_device(device, precision)
    select_device(device)
    models: dict[str, ServedModel] = {}
    left = math.inf if budget is None else budget
    for name, folder in named_folders((*bundled(), *folders)).items():
        weight = 0 if budget is None else served_bytes(folder, precision, controls)
        if weight > left:
            continue
        left -= weight
        models[name] = load_named(name, folder, device, max_images, precision, loras, controls)
    if not models:
        raise CheckpointError(f"no model fits into {budget} bytes (--model-memory)")
    return models


def served_bytes(folder: Path, precision: Precision, controls: Path | None) -> int:
    """What a model takes of `--model-memory`: its weights, and the ControlNets that may stay in memory with it.

    Raises:
        CheckpointError: for a file that cannot be read.
    """
    return weight_bytes(folder, precision) + control_bytes(folder, controls, precision)


def load_named(
    name: str,
    folder: Path,
    device: str,
    max_images: int,
    precision: Precision,
    loras: Path | None,
    controls: Path | None = None,
) -> ServedModel:
    """Load one model under a name; what is slower or less than asked for is logged.

    Raises:
        CheckpointError: for a folder that cannot be served or read.
    """
    loaded = load_for_serving(
        folder, device=device, name=name, max_images=max_images, precision=precision, loras=loras, controls=controls
    )
    for problem in loaded.lora_problems:
        log.warning("%s does not offer an adapter: %s", name, problem)
    for problem in loaded.control_problems:
        log.warning("%s does not offer a ControlNet: %s", name, problem)
    if loaded.fallback is not None:
        log.warning("%s: %s; its evaluations take longer", name, loaded.fallback)
    if loaded.refused_precision is not None:
        log.warning("%s: %s; it is served in float32", name, loaded.refused_precision)
    model = loaded.model
    numerics = with_format(model.card.numerics, model.card.digest)
    model.card = model.card.model_copy(update={"numerics": numerics})
    return model


def named_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """Model folders by the names under which they are served.

    Raises:
        CheckpointError: for two folders of one name, and for a name that cannot be shown.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        name = model_name(folder)
        if name in named:
            raise CheckpointError(
                f"{model_source(named[name])} and {model_source(folder)} would both be served as {name!r}; serve one "
                "of them from a folder, or a link to it, of another name"
            )
        named[name] = folder
    return named


def bundled(zoo: Path = ZOO) -> list[Path]:
    """The model folders that come with the project: those of `ORDER` that are there, then any others by name."""
    folders = [path.parent for path in zoo.glob("*/model_index.json")]
    return sorted(folders, key=lambda folder: (folder.name not in ORDER, _position(folder.name), folder.name))


def _position(name: str) -> int:
    return ORDER.index(name) if name in ORDER else 0


def select_device(device: str) -> None:
    """Make a CUDA device the current one of this thread, which evaluates the networks and records their graphs."""
    parsed = torch.device(device)
    if parsed.type == "cuda" and parsed.index is not None:
        torch.cuda.set_device(parsed)


def check_device(device: str, precision: Precision) -> None:
    """Check that a device can be used, with a precision.

    Raises:
        CheckpointError: if it cannot.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"device {device!r} cannot be used here ({reason})") from error
    if (refused := precision_refusal(device, precision)) is not None:
        raise CheckpointError(refused)
