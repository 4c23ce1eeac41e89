"""How often jobs of a model have been accepted lately, and which ones may be expected next. Does not access Redis.

All front ends count accepted jobs in Redis. Each remembers what the counter was when it read the queues; what the jobs
were like, it knows of those that it accepted itself.
"""

from __future__ import annotations

import threading
from collections import deque

from denoised.app.admission.queue.estimate import ExpectedArrivals, RemainingWork

WINDOW = 8  # times what is forecast: so far back arrivals are counted, and what came before cannot be told from nothing
KEPT_JOBS = 32
MAX_READINGS = 256
RESOLUTION = 8  # readings are kept at distances of at least their age divided by this


class ArrivalHistory:
    """The arrivals of one model. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readings: list[tuple[float, int]] = []  # (seconds, jobs accepted until then), the oldest first
        self._jobs: deque[RemainingWork] = deque(maxlen=KEPT_JOBS)

    def add(self, job: RemainingWork) -> None:
        """Remember what a job was like that has been accepted here."""
        with self._lock:
            self._jobs.append(job)

    def read(self, now: float, accepted: int) -> None:
        """Remember how many jobs have been accepted until now, by a monotonic clock, by all front ends."""
        with self._lock:
            if self._readings and accepted < self._readings[-1][1]:
                self._readings.clear()  # Redis has lost its data
            if self._readings and now <= self._readings[-1][0]:
                return
            self._readings.append((now, accepted))
            if len(self._readings) > MAX_READINGS:
                self._readings = _thinned(self._readings)

    def expected(self, now: float, seconds: float) -> ExpectedArrivals | None:
        """The jobs that may arrive in the next `seconds`; None if none do.

        Their rate is the mean of a window eight times as long. A single burst of jobs therefore counts as little, and
        a load that has just begun as less than it will be.
        """
        window = WINDOW * seconds
        with self._lock:
            jobs, readings = list(self._jobs), list(self._readings)
        if not jobs or not readings or window <= 0:
            return None
        since = next((each for each in reversed(readings) if each[0] <= now - window), readings[0])
        arrived = readings[-1][1] - since[1]
        return ExpectedArrivals(max(window, now - since[0]) / arrived, jobs) if arrived else None


def _thinned(readings: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """The readings without those that are near to others for their age; the first and the last ones stay."""
    last, kept = readings[-1][0], readings[:1]
    for reading in readings[1:]:
        if reading[0] - kept[-1][0] >= (last - reading[0]) / RESOLUTION:
            kept.append(reading)
    return kept
