"""Deletes the objects of jobs that have expired, and those that a process left that died."""

from __future__ import annotations

import logging
import threading

from denoised.jobs.errors import StoreError
from denoised.jobs.results.results import Results

log = logging.getLogger("denoised.jobs")

PAUSE_SECONDS = 5.0
JOBS = 20  # looked at in one go


class Sweeper(threading.Thread):
    """Runs in every front end and worker that has a place for results; each job is looked at by one of them."""

    def __init__(self, results: Results, pause: float = PAUSE_SECONDS) -> None:
        super().__init__(name="sweeper", daemon=True)
        self._results = results
        self._pause = pause
        self._stopped = threading.Event()
        self._failing = False

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.is_set():
            self._sweep()
            self._stopped.wait(self._pause)

    def _sweep(self) -> None:
        try:
            while self._results.delete_due(JOBS) == JOBS and not self._stopped.is_set():
                pass
            self._failing = False
        except StoreError as error:
            if not self._failing:
                log.warning("results of expired jobs are deleted later", extra={"reason": str(error)})
            self._failing = True
        except Exception:
            log.exception("defect")
