"""What a worker sees to beside its turns: it tells that it lives, and takes up the jobs of those who do not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from denoised.jobs.deadline import AWAY
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.store import Queue, Store

log = logging.getLogger("denoised.worker")

ROUNDS = 8  # in a lease


class Housekeeper(threading.Thread):
    """Renews, reports and collects, `ROUNDS` times a lease, until it is stopped.

    renew(): extends this worker's leases; report(): publishes that it lives. After Redis was away nothing is
    collected for half a lease: leases have run out that nobody could renew, and their workers do that first.
    """

    def __init__(
        self, store: Store, queues: Sequence[Queue], lease: float, renew: Callable[[], None], report: Callable[[], None]
    ) -> None:
        super().__init__(name="housekeeper", daemon=True)
        self._store = store
        self._queues = queues
        self._lease = lease
        self._renew = renew
        self._report = report
        self._stopped = threading.Event()
        self._collect_after = 0.0

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._renew()
                self._report()
                if time.monotonic() > self._collect_after:
                    self._collect()
            except (*AWAY, StoreUnavailable) as error:
                log.warning("housekeeping waits: %s", error)
                self._collect_after = time.monotonic() + self._lease / 2
            except Exception:
                log.exception("housekeeping failed")
            self._stopped.wait(self._lease / ROUNDS)

    def _collect(self) -> None:
        for queue in self._queues:
            count = self._store.collect(queue, patience=self._lease)
            if count:
                log.warning("queue %s: %d job(s) of lost workers are queued again", queue.model, count)
