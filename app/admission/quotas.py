"""Quotas: how many jobs and evaluations may wait, in total and per API key.

A refusal has a Retry-After: when enough waiting work will have left the queue, at the measured speed of the workers.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NoReturn

from denoised.app.admission.queue.turn_times import WorkerPool
from denoised.app.http.errors import TooBusy
from denoised.app.http.key_limits import KeyLimits
from denoised.app.settings import ApiSettings
from denoised.jobs.record import JobRecord
from denoised.jobs.store.usage import UsageCounters
from denoised.jobs.worker_report import WorkerReport

COUNTED = ("evaluations_per_minute", "evaluations_per_day", "images")  # in the order of `UsageCounters.charge`
QUEUED = ("jobs", "jobs_per_key", "evaluations", "evaluations_per_key")
LIMITS = (*QUEUED, "streams_per_key", "input_bytes_per_key", *COUNTED)
# Retry-After, in seconds.
DEFAULT_RETRY_AFTER = 10  # before any worker has measured its speed
MAX_RETRY_AFTER = 3600
DEFAULT_LIMITS = KeyLimits()
COUNTED_TEXTS = (
    "evaluations of this key were accepted in this minute",
    "evaluations of this key were accepted today (UTC)",
    "images of this key are kept",
)


@dataclass(frozen=True)
class Load:
    """The work of one waiting job, or of several of one caller.

    reserved_bytes: of Redis' memory.
    model: its name, if that is known.
    jobs: how many they are.
    """

    job: str
    owner: str
    evaluations: int
    reserved_bytes: int = 0
    model: str = ""
    jobs: int = 1

    @classmethod
    def of(cls, record: JobRecord) -> Load:
        request = record.request
        return cls(record.id, record.owner, request.evaluations, record.reserved_bytes, request.model)


@dataclass(frozen=True)
class FleetSpeed:
    """How long all workers together take for the evaluations of each model, whose costs differ by a factor of 1,000.

    by_model: seconds of one evaluation; of models that were measured.
    mean: of any; None before any worker has measured its speed.
    """

    by_model: Mapping[str, float]
    mean: float | None

    @classmethod
    def of(cls, models: Iterable[str], workers: Sequence[WorkerReport]) -> FleetSpeed:
        """The speed of live workers for some models."""
        pools = {model: WorkerPool.of_model(model, workers) for model in models}
        per_second = sum(worker.evaluations_per_second or 0.0 for worker in workers)
        by_model = {model: pool.seconds_per_evaluation for model, pool in pools.items() if pool is not None}
        return cls(by_model, 1 / per_second if per_second else None)

    def seconds(self, load: Load) -> float | None:
        """Of all evaluations of a job; None if its model's speed is unknown."""
        each = self.by_model.get(load.model, self.mean)
        return None if each is None else each * load.evaluations


class Admission:
    """Checks quotas; includes the jobs that are being accepted, so that concurrent requests stay within the limits.

    Exact within one process; several processes may each exceed a limit by one request.

    Attributes:
        refused: the number of refused requests, by limit.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._pending: dict[str, Load] = {}
        self.refused: Counter[str] = Counter(dict.fromkeys(LIMITS, 0))

    @contextmanager
    def accepting(self, load: Load) -> Iterator[list[Load]]:
        """Count a job as pending while it is being accepted; yields the jobs that were pending before it."""
        with self._lock:
            before = list(self._pending.values())
            self._pending[load.job] = load
        try:
            yield before
        finally:
            with self._lock:
                del self._pending[load.job]

    def check(
        self,
        load: Load,
        before: Sequence[Load],
        queues: Mapping[str, Sequence[Load]],
        workers: Iterable[WorkerReport],
        limits: KeyLimits = DEFAULT_LIMITS,
    ) -> None:
        """Check whether a job fits into the quotas. A job that exceeds a limit by itself fits into an empty queue.

        before: the jobs that are being accepted.
        queues: the waiting jobs by model, the next one first.
        limits: of the caller's key.

        Raises:
            TooBusy: when it does not fit.
        """
        waiting = _interleave(queues)
        ahead = {each.job: each for each in (*waiting, *before)}
        speed = FleetSpeed.of({load.model for load in waiting}, list(workers))
        settings = self._settings
        everybody = list(ahead.values())
        self._check_jobs(everybody, settings.max_queue, waiting, speed)
        self._check_evaluations(everybody, load, settings.queue_limit, waiting, speed)
        if settings.api_keys:
            own = [each for each in everybody if each.owner == load.owner]
            most_jobs, most_evaluations = self.waiting_limits(limits)
            self._check_jobs(own, most_jobs, waiting, speed, load.owner)
            self._check_evaluations(own, load, most_evaluations, waiting, speed, load.owner)

    def waiting_limits(self, limits: KeyLimits) -> tuple[int, int]:
        """The most jobs and evaluations of a key that may wait."""
        settings = self._settings
        return limits.jobs or settings.queue_share, limits.evaluations or settings.queue_limit_per_key

    def charge(self, usage: UsageCounters, job: JobRecord, limits: KeyLimits) -> None:
        """Count a job of a key against its evaluations in a minute and in a day, and its images.

        Raises:
            TooBusy: when it exceeds one of them; then nothing is counted.
        """
        allowed = (limits.per_minute, limits.per_day, limits.images)
        exceeded, before = usage.charge(job.owner, job.request.evaluations, job.request.n, allowed)
        if not exceeded:
            return
        used, most = (before.minute, before.day, before.images)[exceeded - 1], allowed[exceeded - 1] or 0
        text, needed = COUNTED_TEXTS[exceeded - 1], (job.request.evaluations, job.request.evaluations, job.request.n)
        retry_after = DEFAULT_RETRY_AFTER if used.resets_in is None else math.ceil(used.resets_in)
        detail = f"{used.count} {text}, and this job needs {needed[exceeded - 1]} (allowed: {most})"
        with self._lock:
            self.refused[COUNTED[exceeded - 1]] += 1
        raise TooBusy(detail, max(1, retry_after), quota=_quota(COUNTED[exceeded - 1], most, used.count))

    def _check_jobs(
        self, ahead: Sequence[Load], limit: int, waiting: Sequence[Load], speed: FleetSpeed, owner: str | None = None
    ) -> None:
        """ahead: the jobs that count, of all callers or of `owner`."""
        if (count := sum(each.jobs for each in ahead)) >= limit:
            text = f"{count} jobs{_of_key(owner)} are waiting (allowed: {limit})"
            own = [each for each in waiting if owner in (None, each.owner)]
            excess = _evaluations_of_first(own, count + 1 - limit)
            self._refuse("jobs", owner, text, _retry_after(waiting, excess, speed, owner), limit, count)

    def _check_evaluations(
        self,
        ahead: Sequence[Load],
        load: Load,
        limit: int,
        waiting: Sequence[Load],
        speed: FleetSpeed,
        owner: str | None = None,
    ) -> None:
        if excess := _excess(ahead, load, limit):
            text = f"{_evaluations(ahead)} evaluations{_of_key(owner)} are waiting, and this job needs"
            text += f" {load.evaluations} (allowed: {limit})"
            retry_after = _retry_after(waiting, excess, speed, owner)
            self._refuse("evaluations", owner, text, retry_after, limit, _evaluations(ahead))

    def _refuse(self, what: str, owner: str | None, text: str, retry_after: int, allowed: int, used: int) -> NoReturn:
        name = what if owner is None else f"{what}_per_key"
        with self._lock:
            self.refused[name] += 1
        raise TooBusy(text, retry_after, quota=_quota(name, allowed, used))


def _quota(name: str, allowed: int, used: int) -> dict[str, Any]:
    """What a refusal says about the quota that it is for."""
    return {"name": name, "allowed": allowed, "used": used, "left": max(0, allowed - used)}


def _of_key(owner: str | None) -> str:
    return "" if owner is None else " of this key"


def _excess(ahead: Iterable[Load], load: Load, limit: int) -> int:
    """The evaluations that have to leave the queue before a job fits; 0 when it fits."""
    waiting = _evaluations(ahead)
    return min(waiting, max(0, waiting + load.evaluations - limit))


def _retry_after(waiting: Sequence[Load], excess: int, speed: FleetSpeed, owner: str | None = None) -> int:
    """Seconds until `excess` evaluations (of `owner`) have left the queue, together with all work ahead of them."""
    total, freed = 0.0, 0.0
    for load in waiting:
        if freed >= excess:
            break
        seconds = speed.seconds(load)
        if seconds is None:
            return DEFAULT_RETRY_AFTER
        # Of several jobs, as many as are needed; callers take turns, so others are drawn meanwhile.
        part = min(1.0, (excess - freed) / max(1, load.evaluations)) if load.jobs > 1 else 1.0
        total += part * seconds
        freed += part * load.evaluations if owner in (None, load.owner) else 0
    return min(MAX_RETRY_AFTER, max(1, math.ceil(round(total, 6))))


def _evaluations_of_first(loads: Iterable[Load], jobs: int) -> int:
    """The evaluations of the first jobs."""
    total = 0.0
    for load in loads:
        taken = min(jobs, load.jobs)
        total += load.evaluations * taken / load.jobs
        jobs -= taken
        if jobs <= 0:
            break
    return math.ceil(total)


def _evaluations(loads: Iterable[Load]) -> int:
    return sum(load.evaluations for load in loads)


def _interleave(queues: Mapping[str, Sequence[Load]]) -> list[Load]:
    """All queues merged round-robin, as workers serve models."""
    return [load for turn in zip_longest(*queues.values()) for load in turn if load is not None]
