"""The queue, from the side that fills it. One of the two files that name RQ.

One RQ queue per model. The RQ job carries nothing but the id: what was asked stands in the
store, as JSON, and RQ's own serializer is JSON too, so nothing in Redis is ever executed.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from denoised.app.admission.queue_snapshot import Forecast, QueueSnapshot
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.memory import Memory
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.store import Store
from denoised.jobs.worker_report import WorkerReport

FRESH_SECONDS = 0.5  # how long a look at the queue serves those who ask for their jobs
REMEMBERED = 10_000  # jobs whose requests are not read again
FUNCTION = "denoised.sample"  # RQ wants a name; the worker class never calls it


class JobQueue:
    """Enqueues, looks, forecasts, removes.

    Raises:
        StoreUnavailable: from every method, when Redis does not answer in time.
    """

    def __init__(self, client: redis.Redis, store: Store, max_attempts: int) -> None:
        self._client = client
        self._store = store
        self._max_attempts = max_attempts
        self._known: OrderedDict[str, JobRecord] = OrderedDict()
        self._forecasts: dict[str, Forecast] = {}
        self._queues: dict[str, Queue] = {}

    def enqueue(self, job: JobRecord, outlook: QueueEstimate) -> None:
        """Accept a job whose id is nobody else's: record, first event and place in the queue appear together or not at
        all.

        Raises:
            StoreFull: when Redis has no memory for it.
        """
        with self._client.pipeline() as pipeline:
            self._accept(job, outlook, pipeline)

    def enqueue_once(self, job: JobRecord, outlook: QueueEstimate) -> bool:
        """The same where others may have the same id: does nothing and returns False when there is a job of it."""
        with self._client.pipeline() as pipeline, contextlib.suppress(redis.exceptions.WatchError):
            if self._store.reserve(job.id, pipeline):
                self._accept(job, outlook, pipeline)
                return True
        if self._store.job(job.id) is None:
            # redis-py says WatchError, too, when the connection breaks while a key is watched.
            raise StoreUnavailable("the connection to Redis broke before the job was accepted")
        return False

    def _accept(self, job: JobRecord, outlook: QueueEstimate, pipeline: Pipeline) -> None:
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
        with self._store.reachable():  # RQ asks for Redis' version when a queue is filled first
            self._queue(job.request.model).enqueue_job(rq_job, pipeline=pipeline)
        self._store.create(job, queued, pipeline)
        with self._store.reachable():
            pipeline.execute()
        self._known[job.id] = job

    def look(self, models: Sequence[str]) -> QueueSnapshot:
        """The queues of some models. One round trip, and another when there are jobs that this process has not met."""
        taken = time.monotonic()
        with self._store.reachable(), self._client.pipeline(transaction=False) as pipeline:
            for model in models:
                queue = self._queue(model)
                pipeline.lrange(queue.key, 0, -1)
                # Not cleaned up by asking, as RQ's own listing would: that is the workers' to do.
                pipeline.zrange(StartedJobRegistry(queue=queue).key, 0, -1)
            pipeline.info("memory")
            *replies, memory = pipeline.execute()
        waiting = [[job_id.decode() for job_id in reply] for reply in replies[::2]]
        held = [_jobs_of(reply) for reply in replies[1::2]]
        self._learn([job_id for ids in (*waiting, *held) for job_id in ids])
        return QueueSnapshot(
            taken,
            {model: self._met(ids) for model, ids in zip(models, waiting, strict=True)},
            {model: self._met(ids) for model, ids in zip(models, held, strict=True)},
            Memory.of(memory),
        )

    def remove(self, job: JobRecord) -> None:
        """Take a canceled job out of its queue, if it still is there."""
        with self._store.reachable():
            if self._queue(job.request.model).remove(job.id):
                self._client.delete(Job.key_for(job.id))  # Job.delete raises when a worker died at it just now

    def forecast(self, job: JobRecord, look: QueueSnapshot, workers: Sequence[WorkerReport]) -> QueueEstimate:
        """Where a new job would stand behind those that wait for its model."""
        return self._forecast(job.request.model, look.behind(job), workers).outlook(job.id)

    def outlook(self, job: JobRecord, workers: Sequence[WorkerReport]) -> QueueEstimate:
        """Where a job stands: its place while queued, the time to go as measured."""
        if job.terminal:
            return QueueEstimate()
        model = job.request.model
        forecast = self._forecasts.get(model)
        if forecast is None or forecast.age > FRESH_SECONDS or job.id not in forecast.ends:
            served = {card["name"] for worker in workers for card in worker.models}
            forecast = self._forecast(model, self.look(sorted({model, *served})), workers)
            self._forecasts[model] = forecast
        seen = forecast.outlook(job.id)
        if job.status == "queued":
            return QueueEstimate(seen.queue_position or 0, seen.eta_seconds)
        return QueueEstimate(None, seen.eta_seconds if seen.eta_seconds is not None else _by_itself(job))

    def _forecast(self, model: str, look: QueueSnapshot, workers: Sequence[WorkerReport]) -> Forecast:
        return look.forecast(
            model, workers, self._store.listing.active_evaluations([job.id for job in look.running(model)])
        )

    def _met(self, job_ids: Sequence[str]) -> list[JobRecord]:
        return [record for job_id in job_ids if (record := self._known.get(job_id)) is not None]

    def _learn(self, job_ids: Sequence[str]) -> None:
        """Read the records that are not known yet; forget the oldest."""
        missing = [job_id for job_id in job_ids if job_id not in self._known]
        for record in self._store.listing.records(missing).values():
            if record is not None:
                self._known[record.id] = record
        while len(self._known) > max(REMEMBERED, len(job_ids)):
            self._known.popitem(last=False)

    def _queue(self, model: str) -> Queue:
        """Kept: it remembers what version Redis has."""
        if model not in self._queues:
            self._queues[model] = Queue(model, connection=self._client, serializer=JSONSerializer)
        return self._queues[model]


def _jobs_of(executions: Sequence[bytes]) -> list[str]:
    """The jobs of the entries of RQ's registry, each once."""
    return list(dict.fromkeys(entry.decode().rpartition(":")[0] for entry in executions))


def _by_itself(job: JobRecord) -> float | None:
    """Seconds to go at the pace that a running job had until now; None before its first step."""
    if not job.step or job.started_at is None:
        return None
    return round((time.time() - job.started_at) * (job.request.steps - job.step) / job.step, 2)
