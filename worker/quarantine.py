"""The last attempt of a job that keeps losing workers: it runs alone in its worker, so that it harms no other job."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from denoised.jobs.errors import StoreError
from denoised.jobs.store.store import Store
from denoised.worker.delivery.leases import Lease, Leases
from denoised.worker.engine.trajectory import Trajectory

log = logging.getLogger("denoised.worker")


class Quarantine:
    """At most one job, from its arrival until it makes progress or is over. worker: this worker's name."""

    def __init__(self, store: Store, leases: Leases, worker: str) -> None:
        self._store = store
        self._leases = leases
        self._worker = worker
        self._waiting: tuple[Lease, Sequence[Trajectory]] | None = None

    @property
    def occupied(self) -> bool:
        """Whether a job has this worker to itself, or waits for that, so that no other may be fetched."""
        return any(lease.attempt.quarantined for lease in self._leases.all())

    def wait(self, lease: Lease, trajectories: Sequence[Trajectory]) -> None:
        """Hold back a job's images until it is the only one."""
        log.warning("job quarantined", extra=lease.attempt.log_fields)
        self._waiting = lease, trajectories

    def clear(self) -> None:
        """Drop the images that wait."""
        self._waiting = None

    def take_ready(self) -> Sequence[Trajectory]:
        """The images that waited, as soon as their job is alone; () before."""
        if self._waiting is None:
            return ()
        lease, trajectories = self._waiting
        held = self._leases.all()
        if lease not in held:
            self._waiting = None  # it was canceled
        elif len(held) == 1 and self._start(lease):
            self._waiting = None
            return trajectories
        return ()

    def _start(self, lease: Lease) -> bool:
        """Record that the attempt runs. Until then losing this worker does not count against the job."""
        record = lease.attempt.record
        try:
            if self._store.attempts.start_alone(record.id, record.attempt, self._worker):
                return True
            self._leases.mark_leaving(record.id)
        except StoreError as error:
            log.warning("job waits for Redis", extra={**lease.attempt.log_fields, "reason": str(error)})
        return False
