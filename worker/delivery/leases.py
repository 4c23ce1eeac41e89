"""The jobs that a worker holds, each with its delivery from RQ. Thread-safe: three threads use them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from redis.client import Pipeline

from denoised.worker.delivery.attempt import AttemptState


class Delivery(Protocol):
    """RQ's side of a job that was taken off its queue.

    job, model: the job's id, and the model whose queue it came from.
    execution: identifies this delivery of the job.
    more: whether the queue held further jobs then.

    `release`, `ack` and `requeue` raise StoreUnavailable when Redis does not answer, or refuses.
    """

    @property
    def job(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def execution(self) -> str: ...

    @property
    def more(self) -> bool: ...

    def renew(self, pipeline: Pipeline) -> None:
        """Add the renewal of the lease to a pipeline."""

    def release(self) -> None:
        """Drop the lease; another worker has the job."""

    def ack(self) -> None:
        """Drop the lease and RQ's job: the job is over."""

    def requeue(self) -> None:
        """Put the job back at the front of its queue."""


@dataclass
class Lease:
    """A job that this worker holds.

    accepted_at: when the job was accepted, in seconds since the epoch.
    spent: seconds of the evaluations that the job took part in.
    overdue: it took longer than a job may, and has been failed.
    """

    delivery: Delivery
    attempt: AttemptState
    accepted_at: float
    spent: float = 0.0
    overdue: bool = False

    @property
    def seconds(self) -> float:
        """Of evaluations and of decoding."""
        return self.spent + self.attempt.decoding_seconds


class Leases:
    """Leases by job id, and the jobs that must leave the batch before its next evaluation."""

    def __init__(self) -> None:
        self._by_job: dict[str, Lease] = {}
        self._leaving: set[str] = set()
        self._lock = threading.Lock()

    def add(self, lease: Lease) -> Lease | None:
        """Add a lease. Returns the one on the same job that it replaces, if any."""
        job = lease.attempt.id
        with self._lock:
            replaced = self._by_job.get(job)
            self._by_job[job] = lease
            self._leaving.discard(job)
        return replaced

    def get(self, job: str) -> Lease | None:
        with self._lock:
            return self._by_job.get(job)

    def of(self, jobs: Iterable[str]) -> list[Lease]:
        """The leases held on these jobs."""
        with self._lock:
            return [self._by_job[job] for job in jobs if job in self._by_job]

    def all(self) -> list[Lease]:
        """All leases, the job accepted last first: requeued in this order, the jobs stand as they did before."""
        with self._lock:
            return sorted(self._by_job.values(), key=lambda lease: lease.accepted_at, reverse=True)

    def remove(self, attempt: AttemptState) -> Lease | None:
        """Give up the lease of an attempt; None when it is not held any more."""
        with self._lock:
            lease = self._by_job.get(attempt.id)
            if lease is None or lease.attempt is not attempt:
                return None
            self._leaving.add(attempt.id)
            return self._by_job.pop(attempt.id)

    def mark_leaving(self, job: str) -> None:
        """Have a job leave the batch, if it is held."""
        with self._lock:
            if job in self._by_job:
                self._leaving.add(job)

    def take_leaving(self) -> set[str]:
        """The jobs marked since the last call."""
        with self._lock:
            leaving, self._leaving = self._leaving, set()
        return leaving
