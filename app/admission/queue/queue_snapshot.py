"""The queues at one moment, and the forecast for each job in them. Does not access Redis."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from denoised.app.admission.queue.arrivals import ArrivalHistory
from denoised.app.admission.queue.estimate import RemainingWork, completion_times
from denoised.app.admission.queue.turn_times import WorkerPool
from denoised.app.admission.quotas import Load
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.redis.memory import Memory
from denoised.jobs.sampling_request import PRIORITIES
from denoised.jobs.store.waiting_lists import CallerQueue, draw_order, with_job
from denoised.jobs.worker_report import WorkerReport


@dataclass(frozen=True)
class QueueSnapshot:
    """The queues and the started jobs, by model. The records may be old: only their immutable fields are valid.

    Attributes:
        taken_at: by `time.monotonic`.
        waiting: the jobs in the order in which workers draw them, if no others arrive.
        started: jobs that workers hold, including those that are being requeued.
        memory: of Redis.
        store_time: Redis' clock at that moment, in seconds since the epoch.
        queues: the lists of the callers, in the order of their turns.
    """

    taken_at: float
    waiting: Mapping[str, Sequence[JobRecord]]
    started: Mapping[str, Sequence[JobRecord]]
    memory: Memory
    store_time: float = 0.0
    queues: Mapping[str, Sequence[CallerQueue]] = field(default_factory=dict)

    @property
    def busy(self) -> list[str]:
        """The models that have waiting or started jobs."""
        return [model for model in self.waiting if self.waiting[model] or self.started.get(model)]

    @property
    def jobs(self) -> int:
        """The number of all waiting jobs."""
        return sum(map(len, self.waiting.values()))

    def loads(self) -> dict[str, list[Load]]:
        """The waiting jobs in the form that quotas count."""
        return {model: [Load.of(record) for record in records] for model, records in self.waiting.items()}

    def reserved_bytes(self, pending: Iterable[Load] = ()) -> int:
        """The memory that accepted jobs may still take. pending: jobs that are being accepted."""
        jobs = {
            job.id: job.reserved_bytes for queues in (self.waiting, self.started) for job in chain(*queues.values())
        }
        return sum((jobs | {load.job: load.reserved_bytes for load in pending}).values())

    def with_job(self, job: JobRecord) -> QueueSnapshot:
        """This snapshot with one more job at the end of its caller's list."""
        model = job.request.model
        queues = with_job(self.queues.get(model, ()), job)
        return replace(
            self,
            waiting={**self.waiting, model: draw_order(queues)},
            queues={**self.queues, model: queues},
        )

    def forecast(
        self,
        model: str,
        workers: Iterable[WorkerReport],
        evaluations: Mapping[str, int],
        until: str | None = None,
        arrivals: ArrivalHistory | None = None,
    ) -> QueueForecast:
        """Positions and completion times of a model's jobs.

        evaluations: completed ones of each running job.
        until: see `completion_times`.
        arrivals: of the model; None: no other job is expected.
        """
        waiting = self.waiting[model]
        positions = {job.id: position for position, job in enumerate(waiting)}
        pool = WorkerPool.of_model(model, workers, self.busy, self._others_share(model))
        if pool is None:
            return QueueForecast(self.taken_at, positions, {})
        running = [_remaining(job, evaluations[job.id]) for job in self.running(model) if job.id in evaluations]
        works = list(map(total_work, waiting))
        ends = completion_times(running, works, pool, until)
        last = ends.get(until, 0.0) if until is not None else max(ends.values(), default=0.0)
        if arrivals is not None and (expected := arrivals.expected(self.taken_at, last)) is not None:
            ends = completion_times(running, works, pool, until, expected)
        return QueueForecast(self.taken_at, positions, ends)

    def _others_share(self, model: str) -> float:
        """The seconds that other models get for each second of this one, as `worker.engine.fair_turns` divides them.

        If a caller has jobs of this model and of others, these take turns: inf.
        """
        own, others = self._weights([model]), self._weights(set(self.busy) - {model})
        return sum(others.values()) / sum(own.values()) if own and not own.keys() & others.keys() else math.inf

    def _weights(self, models: Iterable[str]) -> dict[str, float]:
        """The callers that have jobs of these models."""
        jobs = (job for model in models for job in chain(self.waiting[model], self.started.get(model, ())))
        return {job.owner: job.weight for job in jobs}

    def drain_seconds(self, model: str, workers: Iterable[WorkerReport]) -> float | None:
        """The time that the workers of a model need for its waiting jobs, in full turns; None before any measured."""
        pool = WorkerPool.of_model(model, workers, self.busy)
        if pool is None:
            return None
        waiting = sum(job.request.evaluations for job in self.waiting[model])
        return waiting * pool.turn_seconds(pool.slots) / pool.slots

    def running(self, model: str) -> list[JobRecord]:
        """The started jobs of a model that are not back in its queue."""
        waiting = {job.id for job in self.waiting[model]}
        return [job for job in self.started.get(model, ()) if job.id not in waiting]


@dataclass(frozen=True)
class QueueForecast:
    """The forecast for the jobs of one model.

    Attributes:
        taken_at: of its snapshot, by `time.monotonic`.
        positions: of waiting jobs.
        ends: seconds from then until each job is done.
    """

    taken_at: float
    positions: Mapping[str, int]
    ends: Mapping[str, float]

    @property
    def age(self) -> float:
        """Seconds since the snapshot."""
        return time.monotonic() - self.taken_at

    def estimate(self, job_id: str) -> QueueEstimate:
        end = self.ends.get(job_id)
        eta = round(max(0.0, end - self.age), 2) if end is not None else None
        return QueueEstimate(self.positions.get(job_id), eta)


def total_work(job: JobRecord) -> RemainingWork:
    """The work of a job that has not started."""
    request = job.request
    turns = max(1, request.plan_rows)  # a picture that is returned as it is needs none, which one turn approximates
    return RemainingWork(
        job.id,
        request.n,
        turns=turns,
        rows=max(1.0, request.evaluations / (request.n * turns)),
        owner=job.owner,
        weight=job.weight,
        urgency=PRIORITIES.index(request.priority),
    )


def _remaining(job: JobRecord, completed: int) -> RemainingWork:
    """The work that is left after so many completed evaluations: at least one turn."""
    total = total_work(job)
    remaining = max(0.0, job.request.evaluations - completed)
    if job.request.guidance_interval is not None:
        # Fewer evaluations than the request has at most: by the steps that are left.
        remaining = min(remaining, job.request.evaluations * (1 - job.request.fraction(job.step)))
    return replace(total, turns=max(1.0, remaining / (total.images * total.rows)))
