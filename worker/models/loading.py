"""How a worker loads a model while it serves: as at its start, in the thread of `worker.models.model_loader`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from denoised.model.backends.numerics import Precision
from denoised.worker.engine.batch_size import measure_all
from denoised.worker.engine.canary import Canary
from denoised.worker.engine.speed import Speed
from denoised.worker.model_loading import load_named, select_device, served_bytes
from denoised.worker.models.model_folders import ModelFolders
from denoised.worker.models.model_loader import Loading
from denoised.worker.models.ready_model import ReadyModel


@dataclass(frozen=True)
class LoadOptions:
    """How the models of a worker are loaded: see `worker.model_loading.load_models`."""

    device: str
    max_images: int
    precision: Precision
    loras: Path | None
    controls: Path | None
    budget: int | None = None


def loading_of(
    folders: ModelFolders,
    options: LoadOptions,
    speed: Speed,
    memory_bytes: int | None,
    max_batch: int | None,
) -> Loading:
    """Load models like those of the start. max_batch: images in a turn; None: it is measured."""
    threads = torch.get_num_threads()

    def prepare() -> None:
        torch.set_num_threads(threads)  # a thread of Python has torch's default until then
        select_device(options.device)

    def load(name: str, folder: Path) -> ReadyModel:
        model = load_named(
            name, folder, options.device, options.max_images, options.precision, options.loras, options.controls
        )
        slots = max_batch or measure_all({name: model}, speed, memory_bytes)[name]
        return ReadyModel(model, slots, Canary.record(model))

    def weigh(folder: Path) -> int:
        return served_bytes(folder, options.precision, options.controls)

    return Loading(folders, load, weigh, options.budget, prepare)
