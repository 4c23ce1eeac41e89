"""The adapters that a model offers: which there are, and their layers, read when a request first names them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from denoised.model.checkpoints.lora.lora import LoraTarget
from denoised.model.checkpoints.lora.lora_files import LoraFile, check_lora, list_loras, load_lora
from denoised.model.errors import CheckpointError, PlanError
from denoised.model.networks.low_rank import LoraLayer

MAX_LOADED = 16  # adapters in memory; the one that was used longest ago makes room


@dataclass(frozen=True)
class LoraSelection:
    """The adapters of a folder, for one model.

    Attributes:
        fitting: those that fit it.
        problems: why each of the others does not, in one line that names its file.
    """

    fitting: list[LoraFile]
    problems: list[str]


def select_loras(folder: Path, targets: Sequence[LoraTarget]) -> LoraSelection:
    """Check every adapter of a folder against a model. One that does not fit is left out: it may fit another model.

    Raises:
        CheckpointError: if the folder cannot be read.
    """
    fitting: list[LoraFile] = []
    problems: list[str] = []
    for path in list_loras(folder):
        try:
            fitting.append(check_lora(path, targets))
        except CheckpointError as error:
            problems.append(str(error))
    return LoraSelection(fitting, problems)


class LoraLibrary:
    """The adapters of a model by name. Thread-safe.

    A batch of requests is a tensor (B, A) of weights, one column for each of the A adapters in order of name; 0 stands
    for a request that does not name it.
    """

    def __init__(self, files: Sequence[LoraFile], targets: Sequence[LoraTarget]) -> None:
        self._files = {file.name: file for file in sorted(files, key=lambda file: file.name)}
        self._names = list(self._files)
        self._targets = targets
        self._loaded: OrderedDict[str, list[LoraLayer]] = OrderedDict()  # the most recent last
        self._lock = threading.Lock()

    def weights(self, requests: Sequence[Mapping[str, float]]) -> Tensor:
        """(B, A) float32 of the weights that B requests give to adapters by name. Reads those adapters.

        Raises:
            PlanError: for a name that the model does not offer.
            CheckpointError: for an adapter that cannot be read any more.
        """
        table = torch.zeros(len(requests), len(self._names))
        for row, given in enumerate(requests):
            for name, weight in given.items():
                if name not in self._files:
                    raise PlanError(f"loras: {name!r:.100} is not offered (offered: {', '.join(self._names[:20])})")
                # Read here, in the thread that fetches jobs, so that the engine never waits for a disk.
                self._read(name)
                table[row, self._names.index(name)] = weight
        return table

    def rows(self, weights: Tensor) -> list[dict[str, float]]:
        """The inverse of `weights`."""
        rows: list[dict[str, float]] = [{} for _ in range(len(weights))]
        values = weights.tolist()
        for row, column in weights.nonzero().tolist():
            rows[row][self._names[column]] = values[row][column]
        return rows

    def names(self, component: str) -> list[str]:
        """The adapters that change a component."""
        return [name for name, file in self._files.items() if component in file.components]

    def layers(self, name: str, component: str) -> list[LoraLayer]:
        """The layers of an adapter in a component.

        Raises:
            CheckpointError: if it cannot be read any more.
        """
        return [layer for layer in self._read(name) if layer.component == component]

    def _read(self, name: str) -> list[LoraLayer]:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_lora(self._files[name], self._targets)
                if len(self._loaded) > MAX_LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(name)
            return self._loaded[name]
