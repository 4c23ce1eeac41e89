"""How much may wait: a limit in jobs and one in evaluations, for everybody together and for each key.

What is refused is told when to come back: when the work that stands in the way will have left the
queue, at the speed that the workers measure.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest

from denoised.app.http.errors import TooBusy
from denoised.app.settings import ApiSettings
from denoised.jobs.record import JobRecord
from denoised.jobs.worker_report import WorkerReport

LIMITS = ("jobs", "evaluations", "evaluations_per_key")
UNMEASURED_SECONDS = 10  # before any worker knows how fast it is
LONGEST_SECONDS = 3600


@dataclass(frozen=True)
class Load:
    """What a job that waits stands for."""

    job: str
    owner: str
    evaluations: int

    @classmethod
    def of(cls, record: JobRecord) -> Load:
        return cls(record.id, record.owner, record.request.evaluations)


class Admission:
    """Counts what waits and what is being accepted at this moment, so that many at once stay within the limits.

    Exact in one process; several may each be one request over.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._coming: dict[str, Load] = {}
        self.refused: Counter[str] = Counter(dict.fromkeys(LIMITS, 0))  # requests, by the limit that they met

    @contextmanager
    def coming(self, load: Load) -> Iterator[list[Load]]:
        """While a job is being accepted; gives those that were so before it."""
        with self._lock:
            before = list(self._coming.values())
            self._coming[load.job] = load
        try:
            yield before
        finally:
            with self._lock:
                del self._coming[load.job]

    def check(
        self, load: Load, before: Sequence[Load], queues: Mapping[str, Sequence[Load]], workers: Iterable[WorkerReport]
    ) -> None:
        """before: being accepted. queues: what waits, by model, the next one first.

        Raises:
            TooBusy: when the job would not fit beside them. A job larger than a limit fits where nothing waits.
        """
        waiting = _in_turn(queues)
        there = {known.job: known for known in (*waiting, *before)}
        mine = [known for known in there.values() if known.owner == load.owner]
        settings = self._settings
        speed = sum(worker.evaluations_per_second or 0.0 for worker in workers)
        if len(there) >= settings.max_queue:
            text = f"{len(there)} jobs wait (allowed: {settings.max_queue})"
            enough = _evaluations(waiting[: len(there) + 1 - settings.max_queue])
            raise self._refusal("jobs", text, _seconds(waiting, enough, speed))
        if over := _over(there.values(), load, settings.queue_limit):
            text = f"{_evaluations(there.values())} evaluations wait, and this job has {load.evaluations}"
            text += f" (allowed: {settings.queue_limit})"
            raise self._refusal("evaluations", text, _seconds(waiting, over, speed))
        if settings.api_keys and (over := _over(mine, load, settings.queue_limit_per_key)):
            text = f"{_evaluations(mine)} evaluations of this key wait, and this job has {load.evaluations}"
            text += f" (allowed: {settings.queue_limit_per_key})"
            raise self._refusal("evaluations_per_key", text, _seconds(waiting, over, speed, load.owner))

    def _refusal(self, limit: str, text: str, retry_after: int) -> TooBusy:
        with self._lock:
            self.refused[limit] += 1
        return TooBusy(text, retry_after)


def _over(there: Iterable[Load], load: Load, limit: int) -> int:
    """Evaluations that have to leave before a job fits; 0 when it does."""
    waiting = _evaluations(there)
    return min(waiting, max(0, waiting + load.evaluations - limit))


def _seconds(waiting: Sequence[Load], enough: int, speed: float, owner: str | None = None) -> int:
    """Until `enough` evaluations (of an owner) have left the queue, with all that goes before them."""
    if not speed:
        return UNMEASURED_SECONDS
    gone = freed = 0
    for load in waiting:
        if freed >= enough:
            break
        gone += load.evaluations
        freed += load.evaluations if owner in (None, load.owner) else 0
    return min(LONGEST_SECONDS, max(1, math.ceil(gone / speed)))


def _evaluations(loads: Iterable[Load]) -> int:
    return sum(load.evaluations for load in loads)


def _in_turn(queues: Mapping[str, Sequence[Load]]) -> list[Load]:
    """All queues as one: workers serve models by turns."""
    return [load for turn in zip_longest(*queues.values()) for load in turn if load is not None]
