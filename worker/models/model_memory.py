"""Which models are in memory, if not all fit: those used last, and those that jobs wait for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterable

from denoised.worker.models.model_changes import ModelChanges
from denoised.worker.models.model_entry import ModelEntry

log = logging.getLogger("denoised.worker")

STAY_SECONDS = 10.0  # at least, that a model with jobs stays in memory; and
STAY_LOADS = 10.0  # so many times as long as its loading took, so that loading takes a tenth of the time at most
GIB = 1024**3


class ModelMemory:
    """Decides; the thread that loads models calls it.

    budget: bytes of weights; None: all models stay in memory.
    models: those in memory.
    is_used(model): whether a job holds it; used_at(model): when one came last; waits(model): whether jobs wait for it.
    """

    def __init__(
        self,
        budget: int | None,
        models: Container[str],
        changes: ModelChanges,
        is_used: Callable[[str], bool],
        used_at: Callable[[str], float],
        waits: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._models = models
        self._changes = changes
        self._is_used = is_used
        self._used_at = used_at
        self._waits = waits
        self._clock = clock
        self._is_short = False  # whether somebody asked for room in this round that was not there

    def note_use(self, entries: Iterable[ModelEntry]) -> None:
        """Note which models jobs hold now."""
        for entry in entries:
            used_at = self._clock() if self._is_used(entry.name) else self._used_at(entry.name)
            entry.used_at = max(entry.used_at, used_at)

    def wanted(self, entries: Iterable[ModelEntry]) -> ModelEntry | None:
        """A model that is not in memory although jobs wait for it: the one that was used longest ago."""
        unloaded = [entry for entry in entries if entry.state == "unloaded" and self._waits(entry.name)]
        return min(unloaded, key=lambda entry: entry.used_at, default=None)

    def refusal(self, entry: ModelEntry) -> str | None:
        """Why a model can never be loaded; None if it can."""
        if self._budget is None or entry.bytes <= self._budget:
            return None
        return f"its weights take {entry.bytes / GIB:.3g} GiB (allowed: {self._budget / GIB:.3g}, --model-memory)"

    def has_room(self, entries: Iterable[ModelEntry], wanted: ModelEntry) -> bool:
        """Whether one more model can be loaded; if not, a step toward it: the ones used longest ago leave."""
        if self._budget is None:
            return True
        held = [entry for entry in entries if entry.name in self._models or entry.next is not None]
        loaded = [entry for entry in held if entry is not wanted]
        excess = sum(entry.bytes for entry in loaded) + wanted.bytes - self._budget
        for entry in sorted(loaded, key=lambda entry: entry.used_at):
            if excess <= 0:
                break
            if self._may_leave(entry):
                excess -= entry.bytes if self._unload(entry) else 0
        self._is_short = self._is_short or excess > 0
        return excess <= 0

    def end_round(self, entries: Iterable[ModelEntry]) -> None:
        """Keep the models that were to leave, if nobody needs the room any more."""
        for entry in entries:
            if entry.state == "unloading" and not self._is_short:
                self._changes.resume(entry.name)
                entry.state = "serving"
        self._is_short = False

    def _may_leave(self, entry: ModelEntry) -> bool:
        if not entry.bytes or entry.next is not None or entry.state not in ("serving", "unloading"):
            return False
        stay = max(STAY_SECONDS, STAY_LOADS * entry.load_seconds)
        is_busy = self._is_used(entry.name) or self._waits(entry.name)
        return entry.state == "unloading" or not is_busy or self._clock() - entry.loaded_at > stay

    def _unload(self, entry: ModelEntry) -> bool:
        """Whether a model has left the memory: its running jobs end first."""
        self._changes.retire(entry.name)
        entry.state = "unloading"
        if entry.name not in self._changes.drained or not self._changes.make(entry.name, None):
            return False
        entry.state = "unloaded"
        log.info("model unloaded", extra={"model": entry.name})
        return True
