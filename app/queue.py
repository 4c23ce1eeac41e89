"""The queue, from the side that fills it. One of the two files that name RQ.

One RQ queue per model. The RQ job carries nothing but the id: what was asked stands in the
store, as JSON, and RQ's own serializer is JSON too, so nothing in Redis is ever executed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

import redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from worker.errors import StoreUnavailable
from worker.job import JobRecord, Outlook, SamplingRequest, WorkerReport
from worker.store import Store, reachable

AHEAD = 1000  # jobs ahead that are looked at for an estimate
FUNCTION = "denoised.sample"  # RQ wants a name; the worker class never calls it


class JobQueue:
    """Enqueues, finds positions, removes.

    Raises:
        StoreUnavailable: from every method, when Redis does not answer in time.
    """

    def __init__(self, client: redis.Redis, store: Store, max_attempts: int) -> None:
        self._client = client
        self._store = store
        self._max_attempts = max_attempts

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
        with reachable(), self._client.pipeline() as pipeline, contextlib.suppress(redis.exceptions.WatchError):
            if self._store.reserve(job.id, pipeline):
                queue.enqueue_job(rq_job, pipeline=pipeline)
                self._store.create(job, queued, pipeline)
                pipeline.execute()
                return True
        if self._store.job(job.id) is None:
            # redis-py says WatchError, too, when the connection breaks while a key is watched.
            raise StoreUnavailable("the connection to Redis broke before the job was accepted")
        return False

    def depth(self, model: str) -> int:
        """Jobs that wait for a model."""
        with reachable():
            return int(self._queue(model).count)

    def remove(self, job: JobRecord) -> None:
        """Take a canceled job out of its queue, if it still is there."""
        with reachable():
            if self._queue(job.request.model).remove(job.id):
                self._client.delete(Job.key_for(job.id))  # Job.delete raises when a worker died at it just now

    def forecast(self, request: SamplingRequest, workers: Sequence[WorkerReport]) -> Outlook:
        """Where a new job would stand."""
        ahead = self._waiting(request.model, AHEAD)
        return Outlook(len(ahead), self._seconds(request, ahead, workers))

    def outlook(self, job: JobRecord, workers: Sequence[WorkerReport]) -> Outlook:
        """Where a job stands: its place while queued, the time to go as measured."""
        if job.status == "running" and job.started_at is not None and job.step:
            elapsed = time.time() - job.started_at
            return Outlook(None, round(elapsed * (job.request.steps - job.step) / job.step, 2))
        if job.status != "queued":
            return Outlook()
        waiting = self._waiting(job.request.model, AHEAD)
        ahead = waiting[: waiting.index(job.id)] if job.id in waiting else []
        return Outlook(len(ahead), self._seconds(job.request, ahead, workers))

    def _seconds(self, request: SamplingRequest, ahead: Sequence[str], workers: Sequence[WorkerReport]) -> float | None:
        """Evaluations before and of a job over the measured speed of its model's workers."""
        serving = [worker for worker in workers if any(card["name"] == request.model for card in worker.models)]
        speed = sum(worker.evaluations_per_second or 0.0 for worker in serving)
        if not speed:
            return None
        running = sum(worker.pending_evaluations for worker in serving)
        queued = sum(record.request.evaluations for record in self._store.records(ahead) if record is not None)
        return round((running + queued + request.evaluations) / speed, 2)

    def _waiting(self, model: str, count: int) -> list[str]:
        """Ids in a queue, the next one first; −1 = all."""
        with reachable():
            return [str(job_id) for job_id in self._queue(model).get_job_ids(0, count)]

    def _queue(self, model: str) -> Queue:
        return Queue(model, connection=self._client, serializer=JSONSerializer)
