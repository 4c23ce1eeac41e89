"""The queues of a worker's models, which change while it serves."""

from __future__ import annotations

from collections.abc import Iterable

import redis
from rq import Queue
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from denoised.jobs.store.store import QueueKeys


class WorkerQueues:
    """One thread adds and removes models; others read.

    job_class: of RQ's jobs.

    Attributes:
        served: RQ's keys of the queues of the worker's models.
    """

    def __init__(self, client: redis.Redis, names: Iterable[str], job_class: type[Job]) -> None:
        self._client = client
        self._job_class = job_class
        self._keys: dict[str, QueueKeys] = {}
        self.queues = [self._queue(name) for name in names]
        self.served = tuple(self.keys_of(queue.name) for queue in self.queues)

    def keys_of(self, model: str) -> QueueKeys:
        """RQ's keys of the queue of any model."""
        if model not in self._keys:
            queue = self._queue(model)
            self._keys[model] = QueueKeys(
                model=model,
                waiting=queue.key,
                intermediate=queue.intermediate_queue_key,
                started=StartedJobRegistry(queue=queue).key,
                job_prefix=str(Job.key_for("")),
            )
        return self._keys[model]

    def add(self, model: str) -> None:
        """Serve one more model."""
        if all(queue.name != model for queue in self.queues):
            self.queues = [*self.queues, self._queue(model)]
            self.served = (*self.served, self.keys_of(model))

    def remove(self, model: str) -> None:
        """Serve a model no more."""
        self.queues = [queue for queue in self.queues if queue.name != model]
        self.served = tuple(keys for keys in self.served if keys.model != model)

    def _queue(self, model: str) -> Queue:
        return Queue(model, connection=self._client, serializer=JSONSerializer, job_class=self._job_class)
