"""The jobs that a worker holds, each with its place in RQ. Thread-safe: three threads look after them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from redis.client import Pipeline

from denoised.worker.delivery.attempt import AttemptState


class Delivery(Protocol):
    """RQ's side of a job that was taken off its queue.

    execution: names this taking of it. more: whether others stood behind it then. Every verb raises Redis' own errors,
    or StoreUnavailable, when it is away.
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
        """Say that its worker lives, in one go with others."""

    def end(self) -> None:
        """Let go of it; it is somebody else's."""

    def forget(self) -> None:
        """Let go of it for good: the job is over."""

    def requeue(self) -> None:
        """Put it back to the front of its queue."""


@dataclass
class Lease:
    """A job this worker holds: RQ's side of it, ours, and the seconds of the evaluations it took part in."""

    hold: Delivery
    active: AttemptState
    created_at: float
    spent: float = 0.0


class Leases:
    """By job id. A job that was canceled or lost is marked, and leaves the batch before its next evaluation."""

    def __init__(self) -> None:
        self._by_job: dict[str, Lease] = {}
        self._gone: set[str] = set()
        self._lock = threading.Lock()

    def add(self, lease: Lease) -> Lease | None:
        """Take a lease in. Returns the one that we had on the same job, whose place it takes."""
        job = lease.active.id
        with self._lock:
            before = self._by_job.get(job)
            self._by_job[job] = lease
            self._gone.discard(job)
        return before

    def get(self, job: str) -> Lease | None:
        with self._lock:
            return self._by_job.get(job)

    def of(self, jobs: Iterable[str]) -> list[Lease]:
        """Those of some jobs, as far as we hold them."""
        with self._lock:
            return [self._by_job[job] for job in jobs if job in self._by_job]

    def all(self) -> list[Lease]:
        """Those of the jobs that were accepted last first: put back one by one, they then stand as they stood."""
        with self._lock:
            return sorted(self._by_job.values(), key=lambda lease: lease.created_at, reverse=True)

    def remove(self, active: AttemptState) -> Lease | None:
        """Give up the lease of an attempt; None when we hold none of it any more."""
        with self._lock:
            lease = self._by_job.get(active.id)
            if lease is None or lease.active is not active:
                return None
            self._gone.add(active.id)
            return self._by_job.pop(active.id)

    def mark(self, job: str) -> None:
        """Have a job of ours leave the batch."""
        with self._lock:
            if job in self._by_job:
                self._gone.add(job)

    def take_gone(self) -> set[str]:
        """The marked, once."""
        with self._lock:
            gone, self._gone = self._gone, set()
        return gone
