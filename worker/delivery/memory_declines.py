"""Jobs for which this worker's memory is too small, and which one other worker tries."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection

from denoised.jobs.record import JobRecord

log = logging.getLogger("denoised.worker")

DECLINES = 10  # how often a job is put back for others before this worker takes it again, once per pause
PAUSE_SECONDS = 1.0  # after a decline, in which this worker takes no job of the model
MAX_DECLINED = 1000  # jobs that are remembered


class MemoryDeclines:
    """Thread-safe: the publisher's thread declines jobs, the job fetcher's puts them back.

    worker: this worker's name.
    shared(): the models that other live workers serve, too.
    """

    def __init__(self, worker: str, shared: Callable[[], Collection[str]]) -> None:
        self._worker = worker
        self._shared = shared
        self._lock = threading.Lock()
        self._left: dict[str, int] = {}  # by job: how often it is still put back

    def decline(self, record: JobRecord) -> dict[str, str]:
        """The fields to requeue a job with that ran out of memory; {} if it has to fail.

        It fails if it has run out of memory on another worker before, or no other worker serves its model.
        """
        if record.no_memory_on is not None or record.request.model not in self._shared():
            return {}
        with self._lock:
            if len(self._left) >= MAX_DECLINED:
                self._left.clear()
            self._left[record.id] = DECLINES
        fields = {"job": record.id, "request_id": record.request_id, "model": record.request.model}
        log.warning("job out of memory: another worker tries it", extra=fields)
        return {"no_memory_on": self._worker}

    def is_declined(self, job: str) -> bool:
        """Whether a job that was taken off its queue is to be put back for other workers."""
        with self._lock:
            left = self._left.get(job, 0)
            if left:
                self._left[job] = left - 1
            else:
                self._left.pop(job, None)
        return left > 0
