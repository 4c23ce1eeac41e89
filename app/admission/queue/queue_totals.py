"""The queues at one moment as totals per caller: what admission reads when many jobs wait. Does not access Redis.

With hundreds of waiting jobs, a snapshot of them all would take most of the time of a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from denoised.app.admission.queue.list_totals import Totals
from denoised.app.admission.queue.turn_times import WorkerPool
from denoised.app.admission.quotas import Load
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.redis.memory import Memory
from denoised.jobs.sampling_request import PRIORITIES
from denoised.jobs.worker_report import WorkerReport

RUNNING_SHARE = 0.5  # of their work, what is left of running jobs in the mean


@dataclass(frozen=True)
class CallerTotals:
    """What waits of one caller. lists: by priority, the highest first."""

    owner: str
    weight: float
    lists: tuple[Totals, ...]

    @property
    def total(self) -> Totals:
        """Of all its lists."""
        return sum(self.lists, Totals())

    def up_to(self, priority: str) -> Totals:
        """Of the lists whose jobs are drawn before a new job of this priority."""
        return sum(self.lists[: PRIORITIES.index(priority) + 1], Totals())


@dataclass(frozen=True)
class QueueTotals:
    """In place of a `QueueSnapshot`.

    Attributes:
        callers: By model.
        started, memory, store_time: As in `QueueSnapshot`.
    """

    callers: Mapping[str, Sequence[CallerTotals]]
    started: Mapping[str, Sequence[JobRecord]]
    memory: Memory
    store_time: float

    @property
    def jobs(self) -> int:
        """The number of all waiting jobs."""
        return sum(caller.total.jobs for caller in chain(*self.callers.values()))

    def loads(self) -> dict[str, list[Load]]:
        """The waiting jobs in the form that quotas count: one load for each caller and model."""
        return {
            model: [
                Load(
                    f"{model}/{caller.owner}", caller.owner, total.evaluations, total.reserved_bytes, model, total.jobs
                )
                for caller in callers
                if (total := caller.total).jobs
            ]
            for model, callers in self.callers.items()
        }

    def reserved_bytes(self, pending: Iterable[Load] = ()) -> int:
        """The memory that accepted jobs may still take. pending: jobs that are being accepted."""
        waiting = sum(caller.total.reserved_bytes for caller in chain(*self.callers.values()))
        started = sum(job.reserved_bytes for job in chain(*self.started.values()))
        return waiting + started + sum(load.reserved_bytes for load in pending)

    def estimate(self, job: JobRecord, workers: Iterable[WorkerReport]) -> QueueEstimate:
        """The estimate for a job that is not in the queue yet.

        While the caller's own work up to this job is drawn, each other caller gets its share in proportion to its
        weight, or all that it waits for if that is less; the workers make full turns meanwhile.
        """
        request = job.request
        callers = self.callers.get(request.model, ())
        own = next((caller.up_to(request.priority) for caller in callers if caller.owner == job.owner), Totals())
        jobs, work = float(own.jobs), float(own.evaluations + request.evaluations)
        ahead = float(own.evaluations)
        for caller in callers:
            total = caller.total
            if caller.owner != job.owner and total.jobs:
                drawn = min(1.0, work * caller.weight / job.weight / max(1, total.evaluations))
                jobs, ahead = jobs + drawn * total.jobs, ahead + drawn * total.evaluations
        position = round(jobs)
        busy = [model for model, found in self.callers.items() if any(caller.total.jobs for caller in found)]
        pool = WorkerPool.of_model(request.model, workers, busy)
        if pool is None:
            return QueueEstimate(position, None)
        running = RUNNING_SHARE * sum(each.request.evaluations for each in self.started.get(request.model, ()))
        seconds = (running + ahead + request.evaluations) * pool.seconds_per_evaluation
        return QueueEstimate(position, round(max(seconds, request.plan_rows * pool.turn_seconds(pool.slots)), 2))
