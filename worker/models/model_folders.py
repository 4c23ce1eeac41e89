"""The model folders of a worker: those of its start, and those in a folder that it watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from denoised.model.checkpoints.folders import model_name
from denoised.model.errors import CheckpointError

SETTLE_SECONDS = 2.0  # a folder is read when nothing in it has changed for so long
MAX_MODELS = 1000
MAX_FILES = 1000  # of a model

Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class FoundModel:
    """A folder that should be served.

    Attributes:
        fingerprint: Names, sizes, times and numbers of its files, which differ when it has changed; () if nobody asked.
    """

    name: str
    folder: Path
    fingerprint: Fingerprint = ()


class ModelFolders:
    """Not thread-safe.

    start: The folders of the command line and the bundled ones, by name. They are read again only on command.
    watched: A folder; each folder in it, or link to one, is a model. Names that begin with a dot are left out.
    clock: In seconds.
    """

    def __init__(
        self, start: Mapping[str, Path], watched: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._start = dict(start)
        self._watched = watched
        self._clock = clock
        self._seen: dict[str, tuple[Fingerprint, float]] = {}  # by name: since when

    def scan(self) -> dict[str, FoundModel]:
        """The models that should be served now, by name. A folder that is being written keeps its last state.

        A folder of the start has precedence over a watched one of its name.
        """
        found = {name: FoundModel(name, folder) for name, folder in self._start.items()}
        seen: dict[str, tuple[Fingerprint, float]] = {}
        for name, folder in self._watched_folders().items():
            if name in found:
                continue
            state = _fingerprint(folder)
            before = self._seen.get(name)
            since = before[1] if before is not None and before[0] == state else self._clock()
            seen[name] = state, since
            if self._clock() - since >= SETTLE_SECONDS:
                found[name] = FoundModel(name, folder, state)
        self._seen = seen
        return found

    @property
    def unsettled(self) -> frozenset[str]:
        """Watched folders that have changed within `SETTLE_SECONDS` before the last scan."""
        return frozenset(name for name, (_, since) in self._seen.items() if self._clock() - since < SETTLE_SECONDS)

    def _watched_folders(self) -> dict[str, Path]:
        if self._watched is None:
            return {}
        try:
            entries = sorted(self._watched.iterdir())[:MAX_MODELS]
        except OSError:
            return {}  # it may come later
        folders = {}
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            try:
                folders[model_name(entry)] = entry
            except CheckpointError:
                continue  # no name that a request could carry
        return folders


def _fingerprint(folder: Path) -> Fingerprint:
    states = []
    for path in sorted(folder.rglob("*"))[:MAX_FILES]:
        try:
            state = path.stat()
        except OSError:
            states.append((str(path), -1, -1, -1))
            continue
        states.append((str(path), state.st_size, state.st_mtime_ns, state.st_ino))
    return tuple(states)
