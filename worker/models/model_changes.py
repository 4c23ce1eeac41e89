"""Changes of the models in memory: other threads ask for them, and the engine's thread makes them between two turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container

from denoised.worker.models.ready_model import ReadyModel

APPLY_SECONDS = 60.0  # a turn in progress may take so long


class ModelChanges:
    """A model that jobs run with is retired first: it gets no new jobs, and its running jobs end with it.

    wake(): called when there is something to do.

    Attributes:
        retired: The models that get no new jobs.
        drained: Those of them that no job holds.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.retired: frozenset[str] = frozenset()
        self.drained: frozenset[str] = frozenset()
        self._wake = wake
        self._changed = threading.Condition()  # guards what follows
        self._asked: list[tuple[str, ReadyModel | None]] = []
        self._closed = False

    def retire(self, name: str) -> None:
        """Give a model no new jobs."""
        self.retired |= {name}
        self._wake()

    def resume(self, name: str) -> None:
        """Give a model new jobs again."""
        self.retired -= {name}
        self.drained -= {name}
        self._wake()

    def make(self, name: str, ready: ReadyModel | None) -> bool:
        """Add a model, replace one that is drained, or remove it. Returns whether the engine's thread has done it.

        Afterward, the model is not retired.
        """
        change = (name, ready)
        with self._changed:
            self._asked.append(change)
            self._wake()
            self._changed.wait_for(lambda: change not in self._asked or self._closed, APPLY_SECONDS)
            made = change not in self._asked
            if not made:
                self._asked.remove(change)
        if made:
            self.resume(name)
        return made

    def close(self) -> None:
        """Have nobody wait for the engine's thread any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # The engine's thread

    def step(self, held: Callable[[str], bool], present: Container[str], apply: Apply) -> None:
        """Make the changes that can be made now.

        held: whether a job holds a model. present: the models in memory.
        """
        if self.retired:
            self.drained = frozenset(name for name in self.retired if not held(name))
        if not self._asked:
            return
        with self._changed:
            for change in list(self._asked):
                name, ready = change
                if name not in present or not held(name):
                    apply(name, ready)
                    self._asked.remove(change)
            self._changed.notify_all()


Apply = Callable[[str, ReadyModel | None], None]
