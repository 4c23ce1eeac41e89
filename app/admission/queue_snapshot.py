"""The queues at one moment, and what that means for each job in them. No Redis."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from denoised.app.admission.estimate import Work, WorkerPool, finishes
from denoised.app.admission.quotas import Load
from denoised.jobs.memory import Memory
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.worker_report import WorkerReport


@dataclass(frozen=True)
class QueueSnapshot:
    """What stands in queues and at workers, by model: all that is to be known before a job is accepted.

    taken: when, by `time.monotonic`; waiting: the next one first; held: what workers have, as it was accepted. Of all
    these records only what never changes is to be believed.
    """

    taken: float
    waiting: Mapping[str, Sequence[JobRecord]]
    held: Mapping[str, Sequence[JobRecord]]
    memory: Memory

    @property
    def busy(self) -> list[str]:
        """The models for which there is work."""
        return [model for model in self.waiting if self.waiting[model] or self.held.get(model)]

    def loads(self) -> dict[str, list[Load]]:
        """What waits, as admission counts it."""
        return {model: [Load.of(record) for record in records] for model, records in self.waiting.items()}

    def behind(self, job: JobRecord) -> QueueSnapshot:
        """The same with one job more at the end of its model's queue."""
        model = job.request.model
        return replace(self, waiting={**self.waiting, model: [*self.waiting.get(model, ()), job]})

    def forecast(self, model: str, workers: Iterable[WorkerReport], done: Mapping[str, int]) -> Forecast:
        """What is to come for the jobs of a model. done: evaluations made of those that run."""
        waiting = self.waiting[model]
        positions = {job.id: place for place, job in enumerate(waiting)}
        crew = WorkerPool.of(model, workers, self.busy)
        if crew is None:
            return Forecast(self.taken, positions, {})
        running = [_left(job, done[job.id]) for job in self.running(model) if job.id in done]
        return Forecast(self.taken, positions, finishes(running, map(_whole, waiting), crew))

    def running(self, model: str) -> list[JobRecord]:
        """Jobs of a model that workers have, but for those that were put back."""
        waiting = {job.id for job in self.waiting[model]}
        return [job for job in self.held.get(model, ()) if job.id not in waiting]


@dataclass(frozen=True)
class Forecast:
    """What a look has shown of a model's jobs. ends: seconds from then until each is done, running ones too."""

    taken: float
    positions: Mapping[str, int]
    ends: Mapping[str, float]

    @property
    def age(self) -> float:
        return time.monotonic() - self.taken

    def outlook(self, job_id: str) -> QueueEstimate:
        end = self.ends.get(job_id)
        eta = round(max(0.0, end - self.age), 2) if end is not None else None
        return QueueEstimate(self.positions.get(job_id), eta)


def _whole(job: JobRecord) -> Work:
    """A job that has not begun."""
    rows = 2 if job.request.guidance_scale != 1.0 else 1
    return Work(job.id, job.request.n, job.request.evaluations / (job.request.n * rows), rows)


def _left(job: JobRecord, done: int) -> Work:
    """What is left of a job of which so many evaluations were made."""
    whole = _whole(job)
    left = max(0, job.request.evaluations - done)
    return Work(whole.job, whole.images, max(1.0, left / (whole.images * whole.rows)), whole.rows)
