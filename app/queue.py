"""The queue, from the side that fills it. One of the two files that name RQ.

One RQ queue per model. The RQ job carries nothing but the id: what was asked stands in the
store, as JSON, and RQ's own serializer is JSON too, so nothing in Redis is ever executed.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import redis
from rq import Queue
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from app.forecast import Crew, Work, finishes
from worker.errors import StoreUnavailable
from worker.job import JobRecord, Outlook, WorkerReport
from worker.store import Store

FRESH_SECONDS = 0.5  # how long a look at the queue serves those who ask for their jobs
REMEMBERED = 10_000  # jobs whose requests are not read again
FUNCTION = "denoised.sample"  # RQ wants a name; the worker class never calls it


@dataclass(frozen=True)
class Look:
    """A model's queue at one moment. ends: seconds from then until each job is done, running ones too."""

    taken: float
    positions: dict[str, int]
    ends: dict[str, float]

    @property
    def age(self) -> float:
        return time.monotonic() - self.taken

    def outlook(self, job_id: str) -> Outlook:
        end = self.ends.get(job_id)
        eta = round(max(0.0, end - self.age), 2) if end is not None else None
        return Outlook(self.positions.get(job_id), eta)


class JobQueue:
    """Enqueues, finds positions, removes.

    Raises:
        StoreUnavailable: from every method, when Redis does not answer in time.
    """

    def __init__(self, client: redis.Redis, store: Store, max_attempts: int) -> None:
        self._client = client
        self._store = store
        self._max_attempts = max_attempts
        self._known: OrderedDict[str, JobRecord] = OrderedDict()
        self._looks: dict[str, Look] = {}
        self._queues: dict[str, Queue] = {}

    def enqueue(self, job: JobRecord, outlook: Outlook) -> bool:
        """Accept a job: record, first event and place in the queue appear together or not at all.

        Does nothing and returns False when there is a job of that id.

        Raises:
            StoreFull: when the memory that is left is kept for the jobs that were accepted before.
        """
        self._store.check_room()
        queue = self._queue(job.request.model)
        rq_job = Job.create(
            FUNCTION,
            id=job.id,
            connection=self._client,
            serializer=JSONSerializer,
            timeout=-1,
            result_ttl=0,
        )
        job = replace(job, max_attempts=self._max_attempts)
        queued = {"queue_position": outlook.queue_position, "eta_seconds": outlook.eta_seconds}
        with self._client.pipeline() as pipeline, contextlib.suppress(redis.exceptions.WatchError):
            if self._store.reserve(job.id, pipeline):
                with self._store.reachable():  # RQ asks for Redis' version when a queue is filled first
                    queue.enqueue_job(rq_job, pipeline=pipeline)
                self._store.create(job, queued, pipeline)
                with self._store.reachable():
                    pipeline.execute()
                self._known[job.id] = job
                return True
        if self._store.job(job.id) is None:
            # redis-py says WatchError, too, when the connection breaks while a key is watched.
            raise StoreUnavailable("the connection to Redis broke before the job was accepted")
        return False

    def waiting(self, models: Sequence[str]) -> dict[str, list[JobRecord]]:
        """What waits for each model, the next one first. Of the records only what never changes is to be believed."""
        with self._store.reachable(), self._client.pipeline(transaction=False) as pipeline:
            for model in models:
                pipeline.lrange(self._queue(model).key, 0, -1)
            replies = cast("list[list[bytes]]", pipeline.execute())
        ids = {model: [job_id.decode() for job_id in reply] for model, reply in zip(models, replies, strict=True)}
        self._learn([job_id for queued in ids.values() for job_id in queued])
        return {
            model: [record for job_id in queued if (record := self._known.get(job_id)) is not None]
            for model, queued in ids.items()
        }

    def held(self, models: Sequence[str]) -> dict[str, int]:
        """How many jobs of each model workers hold."""
        with self._store.reachable(), self._client.pipeline(transaction=False) as pipeline:
            for model in models:
                pipeline.zcard(StartedJobRegistry(queue=self._queue(model)).key)
            return dict(zip(models, cast("list[int]", pipeline.execute()), strict=True))

    def remove(self, job: JobRecord) -> None:
        """Take a canceled job out of its queue, if it still is there."""
        with self._store.reachable():
            if self._queue(job.request.model).remove(job.id):
                self._client.delete(Job.key_for(job.id))  # Job.delete raises when a worker died at it just now

    def forecast(self, job: JobRecord, waiting: Sequence[JobRecord], workers: Sequence[WorkerReport]) -> Outlook:
        """Where a new job would stand behind those that wait for its model."""
        return self._look(job.request.model, [*waiting, job], workers).outlook(job.id)

    def outlook(self, job: JobRecord, workers: Sequence[WorkerReport]) -> Outlook:
        """Where a job stands: its place while queued, the time to go as measured."""
        if job.terminal:
            return Outlook()
        model = job.request.model
        look = self._looks.get(model)
        if look is None or look.age > FRESH_SECONDS or job.id not in look.ends:
            look = self._looks[model] = self._look(model, self.waiting([model])[model], workers)
        seen = look.outlook(job.id)
        if job.status == "queued":
            return Outlook(seen.queue_position or 0, seen.eta_seconds)
        return Outlook(None, seen.eta_seconds if seen.eta_seconds is not None else _by_itself(job))

    def _look(self, model: str, waiting: Sequence[JobRecord], workers: Sequence[WorkerReport]) -> Look:
        taken = time.monotonic()
        positions = {job.id: place for place, job in enumerate(waiting)}
        crew = Crew.of(model, workers, self._busy(workers))
        if crew is None:
            return Look(taken, positions, {})
        running = [_left(job) for job in self._running(model) if job.id not in positions]
        return Look(taken, positions, finishes(running, map(_whole, waiting), crew))

    def _busy(self, workers: Sequence[WorkerReport]) -> list[str]:
        """The models of these workers for which there is work."""
        models = sorted({card["name"] for worker in workers for card in worker.models})
        with self._store.reachable(), self._client.pipeline(transaction=False) as pipeline:
            for model in models:
                queue = self._queue(model)
                pipeline.exists(queue.key, StartedJobRegistry(queue=queue).key)
            return [model for model, there in zip(models, pipeline.execute(), strict=True) if there]

    def _running(self, model: str) -> list[JobRecord]:
        """Jobs that workers hold, as they stand. Not cleaned up by asking: that is the workers' to do."""
        with self._store.reachable():
            registry = StartedJobRegistry(queue=self._queue(model))
            ids = registry.get_job_ids(cleanup=False)
        self._learn(ids)
        going = [(self._known.get(job_id), done) for job_id, done in self._store.going(ids).items()]
        return [replace(record, evaluations=done) for record, done in going if record is not None]

    def _learn(self, job_ids: Sequence[str]) -> None:
        """Read the records that are not known yet; forget the oldest."""
        missing = [job_id for job_id in job_ids if job_id not in self._known]
        for record in self._store.records(missing):
            if record is not None:
                self._known[record.id] = record
        while len(self._known) > max(REMEMBERED, len(job_ids)):
            self._known.popitem(last=False)

    def _queue(self, model: str) -> Queue:
        """Kept: it remembers what version Redis has."""
        if model not in self._queues:
            self._queues[model] = Queue(model, connection=self._client, serializer=JSONSerializer)
        return self._queues[model]


def _whole(job: JobRecord) -> Work:
    """A job that has not begun."""
    rows = 2 if job.request.guidance_scale != 1.0 else 1
    return Work(job.id, job.request.n, job.request.evaluations / (job.request.n * rows), rows)


def _left(job: JobRecord) -> Work:
    """What is left of a job that has begun."""
    whole = _whole(job)
    left = max(0, job.request.evaluations - job.evaluations)
    return Work(whole.job, whole.images, max(1.0, left / (whole.images * whole.rows)), whole.rows)


def _by_itself(job: JobRecord) -> float | None:
    """Seconds to go at the pace that a running job had until now; None before its first step."""
    if not job.step or job.started_at is None:
        return None
    return round((time.time() - job.started_at) * (job.request.steps - job.step) / job.step, 2)
