"""The RQ worker: takes jobs off the queues, holds their leases, and returns them.

This and `app.admission.job_queue`, which enqueues, are the two files that import RQ. RQ holds the queues and the
leases; `jobs.store` holds the jobs. Five threads: the engine's (`worker.loop`), the job fetcher, the publisher, the
housekeeper, and the listener for new jobs and cancels.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any
from uuid import uuid4

import redis
from redis.client import Pipeline
from rq import Queue
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.worker.base import BaseWorker

from denoised.jobs.deadline import REDIS_ERRORS
from denoised.jobs.redis_keys import model_channel
from denoised.jobs.store import QueueKeys, Store
from denoised.jobs.worker_report import WorkerReport
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.housekeeper import Housekeeper
from denoised.worker.delivery.listener import Listener
from denoised.worker.delivery.model_names import ModelNames
from denoised.worker.engine.speed import Speed
from denoised.worker.errors import ModelConflict
from denoised.worker.loop import Loop
from denoised.worker.settings import WorkerSettings

log = logging.getLogger("denoised.worker")


class InertJob(Job):
    """RQ's job without the code that a hash in Redis could make it run: no callbacks by name, no webhooks."""

    @property
    def success_callback(self) -> None:
        return None

    @property
    def failure_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None

    def send_webhooks(self, status: str | JobStatus, *, exc_string: str | None = None) -> None:
        """Call nothing."""


@dataclass(frozen=True)
class RqDelivery:
    """RQ's side of a job that this worker has taken (see `worker.delivery.leases.Delivery`)."""

    worker: BatchingWorker
    rq_job: Job
    queue: Queue
    rq_execution: Execution
    more: bool

    @property
    def job(self) -> str:
        return str(self.rq_job.id)

    @property
    def model(self) -> str:
        return str(self.queue.name)

    @property
    def execution(self) -> str:
        return self.rq_execution.id

    def renew(self, pipeline: Pipeline) -> None:
        # BaseWorker.maintain_heartbeats would make a round trip for each job.
        ttl = self.worker.get_heartbeat_ttl(self.rq_job)
        self.rq_execution.heartbeat(self.rq_job.started_job_registry, ttl, pipeline)

    def release(self) -> None:
        with self.worker.connection.pipeline() as pipeline:
            self.worker.cleanup_execution(self.rq_job, pipeline=pipeline, execution=self.rq_execution)
            pipeline.execute()

    def ack(self) -> None:
        # Job.delete of rq 3.0.0 raises for a minute after the lease of a dead worker has expired.
        with self.worker.connection.pipeline() as pipeline:
            self.worker.cleanup_execution(self.rq_job, pipeline=pipeline, execution=self.rq_execution)
            pipeline.delete(self.rq_job.key, self.rq_job.execution_registry.key)
            pipeline.execute()

    def requeue(self) -> None:
        with self.worker.connection.pipeline() as pipeline:
            self.worker.cleanup_execution(self.rq_job, pipeline=pipeline, execution=self.rq_execution)
            self.rq_job.set_status(JobStatus.QUEUED, pipeline=pipeline)
            self.queue.push_job_id(self.rq_job.id, pipeline=pipeline, at_front=True)
            pipeline.publish(model_channel(self.model), self.rq_job.id)
            pipeline.execute()


class BatchingWorker(BaseWorker):
    """One process, one device, one running batch.

    models: the served models by name; each has a queue of that name.
    speed: what is known of their speed already.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        client: redis.Redis,
        store: Store,
        settings: WorkerSettings,
        speed: Speed | None = None,
    ) -> None:
        queues = [Queue(name, connection=client, serializer=JSONSerializer, job_class=InertJob) for name in models]
        name = f"worker-{uuid4().hex[:12]}"
        super().__init__(queues, name=name, connection=client, serializer=JSONSerializer, job_class=InertJob)
        self.store = store
        self.settings = settings
        self.loop = Loop(models, store, settings, name, self._take, speed or Speed())
        self._by_model = {queue.name: queue for queue in queues}
        self._listener = Listener(client, models, wake=self.loop.wake, cancel=self.loop.cancel)
        digests = {name: model.card.digest for name, model in models.items()}
        self._names = ModelNames(store, name, digests, settings.lease)
        self._conflict: ModelConflict | None = None
        self._housekeeper = Housekeeper(
            store, [_keys(queue) for queue in queues], settings.lease, self._renew, self._report
        )

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Serve until SIGTERM or SIGINT, then finish or requeue what runs. Returns whether any job was run.

        Raises:
            ModelConflict: when another worker serves another model under the name of one of these.
        """
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        self._names.acquire(self.loop.stopping)
        self.register_birth()  # type: ignore[no-untyped-call]
        for thread in (self.loop.publisher, self._housekeeper, self._listener):
            thread.start()
        log.info("serving %s, %d batch slots", ", ".join(self.loop.models), self.settings.max_batch)
        written = False
        try:
            written = self.loop.run()
        finally:
            self._housekeeper.stop()
            self._listener.stop()
            if written:
                self._leave()
        if self._conflict is not None:
            raise self._conflict
        return self.loop.speed.total > 0

    # Queues

    def _take(self, model: str) -> RqDelivery | None:
        """Take a job off a model's queue and get a lease on it. None when the queue is empty.

        A worker killed in between leaves the job in RQ's intermediate queue, where `Store.requeue_lost` finds it: it
        leaves that queue in the same transaction in which the lease begins. (BaseWorker's own two methods for this take
        a round trip each.)
        """
        queue = self._by_model[model]
        rq_job = self._dequeue(queue)
        if rq_job is None:
            return None
        with self.connection.pipeline() as pipeline:
            ttl = self.get_heartbeat_ttl(rq_job)
            execution = Execution.create(rq_job, ttl, pipeline, worker_name=self.name)
            rq_job.prepare_for_execution(self.name, pipeline)
            pipeline.persist(rq_job.key)
            pipeline.lrem(queue.intermediate_queue_key, 1, rq_job.id)
            pipeline.llen(queue.key)
            *_, behind = pipeline.execute()
        return RqDelivery(self, rq_job, queue, execution, more=behind > 0)

    def _dequeue(self, queue: Queue) -> Job | None:
        """The next job of a queue, None when it is empty. Anything that is not a job of ours is dropped."""
        while True:
            job_id = "?"
            try:
                found = self.queue_class.dequeue_any(
                    [queue], None, connection=self.connection, job_class=self.job_class, serializer=JSONSerializer
                )
                if found is None:
                    return None
                job_id = found[0].id
                _ = found[0].func_name  # raises unless the payload is JSON
                return found[0]
            except REDIS_ERRORS:
                raise
            except Exception as error:
                self._drop(queue, getattr(error, "job_id", job_id), error)

    def _drop(self, queue: Queue, job_id: str, error: Exception) -> None:
        fields = {"model": queue.name, "job": job_id, "reason": type(error).__name__}
        log.warning("foreign queue entry dropped", extra=fields)
        queue.intermediate_queue.remove(job_id)
        self.connection.delete(Job.key_for(job_id))

    # The housekeeper's thread

    def _renew(self) -> None:
        """Renew all leases in one round trip; with a slow Redis, one by one would take longer than a lease."""
        with self.connection.pipeline(transaction=False) as pipeline:
            self.heartbeat(pipeline=pipeline)
            for lease in self.loop.leases.all():
                lease.delivery.renew(pipeline)
            pipeline.execute()

    def _report(self) -> None:
        """Publish what this worker does; stop if its models' names were taken while it was cut off from Redis."""
        try:
            self._names.renew()
        except ModelConflict as conflict:
            self._conflict = conflict
            self.loop.stop()
        running, pending = self.loop.load
        report = WorkerReport(
            name=self.name,
            models=[model.card.model_dump() for model in self.loop.models.values()],
            max_batch=self.settings.max_batch,
            trajectories=running,
            pending_evaluations=pending,
            evaluations_per_second=self.loop.speed.per_second,
            reserved=self.loop.engine.batch.reserved,
            places=self.loop.engine.batch.max_members,
            paces=self.loop.speed.paces(),
            counters=asdict(self.loop.counters),
            reported_at=time.time(),
        )
        if not self.loop.stopping.is_set():
            self.store.workers.report(report, ttl=self.settings.lease)
        self.store.workers.add_counters(self.name, asdict(self.loop.counters))

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """RQ's lease on a job, in seconds: one more than ours, since RQ rounds its expiry down."""
        return math.ceil(self.settings.lease) + 1

    # Start and stop

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        """Keep the client: RQ would stretch its timeouts to minutes, for a blocking call that is never made here."""
        return connection

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.loop.stop()

    def _leave(self) -> None:
        try:
            self.store.workers.add_counters(self.name, asdict(self.loop.counters))
            self.store.workers.remove(self.name)
            self._names.release()
            self.register_death()  # type: ignore[no-untyped-call]
        except REDIS_ERRORS as error:
            log.warning("worker not unregistered", extra={"reason": str(error)})


def _keys(queue: Queue) -> QueueKeys:
    """RQ's keys of a queue."""
    return QueueKeys(
        model=queue.name,
        waiting=queue.key,
        intermediate=queue.intermediate_queue_key,
        started=StartedJobRegistry(queue=queue).key,
        job_prefix=str(Job.key_for("")),
    )
