"""Renews a worker's leases, reports that it is alive, and requeues the jobs of workers that are not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from denoised.jobs.errors import RecordError, StoreUnavailable
from denoised.jobs.store.queue_keys import QueueKeys
from denoised.jobs.store.store import Store

log = logging.getLogger("denoised.worker")

ROUNDS = 8  # per lease
CLOCK_STEP = 0.25  # leases; if Redis' clock differs from what was expected by more than this, it was set


class Housekeeper(threading.Thread):
    """Runs `ROUNDS` rounds per lease until it is stopped.

    queues(): of the worker's models.
    lease: in seconds.
    renew(): extends this worker's leases, and returns Redis' time in seconds.
    report(): publishes that it is alive.

    After an outage of Redis, or a step of its clock, nothing is requeued for half a lease: leases have expired that
    nobody could renew, and their workers renew them first.
    """

    def __init__(
        self,
        store: Store,
        queues: Callable[[], Iterable[QueueKeys]],
        lease: float,
        renew: Callable[[], float],
        report: Callable[[], None],
    ) -> None:
        super().__init__(name="housekeeper", daemon=True)
        self._store = store
        self._queues = queues
        self._lease = lease
        self._renew = renew
        self._report = report
        self._stopped = threading.Event()
        self._requeue_after = 0.0
        self._clock_offset: float | None = None  # of Redis' clock against `time.monotonic`

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.is_set():
            # Each by itself: a defect or a damaged key that stops one must not stop the others.
            self._attempt(self._renew_leases)
            self._attempt(self._report)
            if time.monotonic() > self._requeue_after:
                self._attempt(self._requeue_lost)
            self._stopped.wait(self._lease / ROUNDS)

    def _attempt(self, task: Callable[[], None]) -> None:
        try:
            task()
        except StoreUnavailable as error:
            log.warning("housekeeping waits for Redis", extra={"reason": str(error)})
            self._requeue_after = time.monotonic() + self._lease / 2
        except Exception:
            log.exception("housekeeping failed")

    def _renew_leases(self) -> None:
        before, offset = self._clock_offset, self._renew() - time.monotonic()
        self._clock_offset = offset
        if before is not None and abs(offset - before) > self._lease * CLOCK_STEP:
            log.warning("the clock of Redis was set", extra={"seconds": round(offset - before, 3)})
            self._requeue_after = time.monotonic() + self._lease / 2

    def _requeue_lost(self) -> None:
        if self._clock_offset is None:
            return
        latest = time.monotonic() + self._clock_offset + self._lease * CLOCK_STEP
        for queue in self._queues():
            try:
                count = self._store.attempts.requeue_lost(queue, self._lease, latest)
            except RecordError as error:
                log.warning("queue unreadable", extra={"model": queue.model, "reason": str(error)})
                continue
            if count:
                log.warning("jobs of lost workers requeued", extra={"model": queue.model, "jobs": count})
