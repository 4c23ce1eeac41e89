"""The queues of a worker's models, which change while it serves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from denoised.jobs.store.queue_keys import QueueKeys


class WorkerQueues:
    """One thread adds and removes models; others read.

    make: makes the queue of a model; keys: its keys.

    Attributes:
        queues: Of the worker's models.
        served: Their keys.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], Any], keys: Callable[[Any], QueueKeys]) -> None:
        self._make = make
        self._keys_of_queue = keys
        self._keys: dict[str, QueueKeys] = {}
        self.queues: list[Any] = [make(name) for name in names]
        self.served = tuple(self.keys_of(queue.name) for queue in self.queues)

    def keys_of(self, model: str) -> QueueKeys:
        """The keys of the queue of any model."""
        if model not in self._keys:
            self._keys[model] = self._keys_of_queue(self._make(model))
        return self._keys[model]

    def add(self, model: str) -> None:
        """Serve one more model."""
        if all(queue.name != model for queue in self.queues):
            self.queues = [*self.queues, self._make(model)]
            self.served = (*self.served, self.keys_of(model))

    def remove(self, model: str) -> None:
        """Serve a model no more."""
        self.queues = [queue for queue in self.queues if queue.name != model]
        self.served = tuple(keys for keys in self.served if keys.model != model)
