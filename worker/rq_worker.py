"""The RQ worker: takes jobs from the queues, drives the engine, keeps the leases.

One of the two files that name RQ; the other, `app.queue`, enqueues. RQ holds the queue, the
leases and the retries; what a job is and what became of it stands in `worker.store`. Three
threads beside the engine's own: the publisher, the housekeeper (leases, reports, abandoned
jobs), and a listener that hears of new work and of cancels.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any
from uuid import uuid4

import redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, clean_registries
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.worker.base import BaseWorker

from model.denoiser import PixelModel
from model.errors import ModelError
from worker.engine import Engine
from worker.errors import StoreUnavailable
from worker.job import JobRecord, WorkerReport
from worker.listener import Listener
from worker.publisher import ActiveJob, Publisher
from worker.speed import Speed
from worker.store import AWAY, Store, Write, model_channel
from worker.trajectory import trajectories

log = logging.getLogger("denoised.worker")

REDIS_ERRORS = (*AWAY, StoreUnavailable)
IDLE_SECONDS = 1.0  # how long an idle worker sleeps when nobody wakes it
ASK_SECONDS = 0.25  # how long a busy one does not ask queues that were empty, unless somebody wakes it
FINISH_SECONDS = 5.0  # what is done sooner than this is finished on SIGTERM, the rest given back
FLUSH_SECONDS = 3.0


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker behaves. Seconds, unless said otherwise.

    max_batch: images in one evaluation; job_timeout: of the evaluations that a job takes part in.
    """

    max_batch: int = 16
    lease: float = 10.0
    job_timeout: float = 600.0


class InertJob(Job):
    """RQ's job without what a hash in Redis could make it do: no callbacks by name, no webhooks."""

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
        """Nobody is called."""


@dataclass
class Lease:
    """A job this worker holds: RQ's side of it, ours, and the seconds of the evaluations it took part in."""

    rq_job: Job
    queue: Queue
    execution: Execution
    active: ActiveJob
    spent: float = 0.0


class BatchingWorker(BaseWorker):
    """One process, one device, one running batch.

    models: what it serves, by name; each has a queue of that name. speed: what is known of theirs already.
    """

    def __init__(
        self,
        models: Mapping[str, PixelModel],
        client: redis.Redis,
        store: Store,
        settings: WorkerSettings,
        speed: Speed | None = None,
    ) -> None:
        queues = [Queue(name, connection=client, serializer=JSONSerializer, job_class=InertJob) for name in models]
        name = f"worker-{uuid4().hex[:12]}"
        super().__init__(queues, name=name, connection=client, serializer=JSONSerializer, job_class=InertJob)
        self.models = models
        self.store = store
        self.settings = settings
        self.engine = Engine(models, settings.max_batch)
        self.publisher = Publisher(store, self._release)
        self._leases: dict[str, Lease] = {}
        self._leases_lock = threading.Lock()
        self._woken = threading.Event()
        channels = [model_channel(name) for name in models]
        self._listener = Listener(client, channels, wake=self._woken.set, cancel=self._note_cancel)
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._to_evict: set[str] = set()
        self._more = True  # whether there may be jobs in the queues
        self._ask_after = 0.0  # when Redis was away
        self._ask_anyway = 0.0
        self._speed = speed or Speed()
        self._turn_ended: float | None = None  # None while nobody is here
        self._load = (0, 0)  # trajectories, evaluations to go; for the housekeeper, who may not look into the batch

    # The engine's thread

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Serve until SIGTERM or SIGINT; then finish or give back what runs. Returns whether any job came."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        self.register_birth()  # type: ignore[no-untyped-call]
        housekeeper = threading.Thread(target=self._keep_house, name="housekeeper", daemon=True)
        for thread in (self.publisher, housekeeper, self._listener):
            thread.start()
        log.info("serving %s, %d lanes", ", ".join(self.models), self.settings.max_batch)
        try:
            while not self._stopping.is_set():
                self._take_jobs()
                if not self._turn():
                    self._load = (0, 0)
                    self._woken.wait(IDLE_SECONDS)
            self._drain()
        finally:
            self.publisher.close(FLUSH_SECONDS)
            self._ended.set()
            self._listener.stop()
            self._leave()
        return self._speed.total > 0

    def _turn(self) -> bool:
        """One evaluation for everybody who may go on. False when nobody is here."""
        self._evict()
        started = time.monotonic()
        turn = self.engine.step()
        if not turn.rows and not turn.failed:
            self._turn_ended = None
            return False
        ended = time.monotonic()
        seconds = ended - started
        if turn.advanced:
            # What the loop does between two turns is part of what the second takes.
            model = turn.advanced[0].trajectory.model
            self._speed.add(model, turn.rows, ended - (self._turn_ended or started))
        self._turn_ended = ended
        names = {item.trajectory.job for item in turn.advanced} | {trajectory.job for trajectory, _ in turn.failed}
        with self._leases_lock:
            leases = [self._leases[name] for name in sorted(names) if name in self._leases]
        for lease in leases:
            lease.spent += seconds
        self.publisher.publish(turn, [lease.active for lease in leases])
        batch = self.engine.batch
        self._load = (len(batch), batch.pending_evaluations)
        return True

    def _evict(self) -> None:
        """Remove what was canceled, what another attempt has taken, and what is late."""
        with self._leases_lock:
            gone, self._to_evict = self._to_evict, set()
            late = [lease for lease in self._leases.values() if lease.spent > self.settings.job_timeout]
            canceled = [self._leases[job].active for job in gone if job in self._leases]
        evicted = {job for job in gone if self.engine.batch.evict(job)}
        for active in canceled:
            if active.id in evicted:
                # No turn will be written for it any more: this write is refused, and so the lease ends.
                self.publisher.fail(active, "canceled", "the job was canceled")
        for lease in late:
            if self.engine.batch.evict(lease.active.id):
                limit = f"the job was not done within {self.settings.job_timeout:g} s"
                self.publisher.fail(lease.active, "timeout", limit)

    def _take_jobs(self) -> None:
        """Fill the batch from the queues; those that were empty are not asked at each turn."""
        now = time.monotonic()
        if self._woken.is_set() or now >= self._ask_anyway:
            self._woken.clear()
            self._more = True
        if not self._more or now < self._ask_after:
            return
        try:
            filled = [self._fill_from(queue) for queue in self.queues]
            self._more = any(filled)
            self._ask_anyway = now + ASK_SECONDS
        except REDIS_ERRORS as error:
            log.warning("no new jobs: %s", error)
            self._ask_after = time.monotonic() + IDLE_SECONDS  # what runs goes on meanwhile

    def _fill_from(self, queue: Queue) -> bool:
        """Take jobs while there are lanes. False when the queue is empty.

        When there are none, one job a turn as long as there is room: workers with free lanes get the others.
        """
        batch = self.engine.batch
        if not batch.has_lane(queue.name):
            return not batch.has_room(queue.name) or self._take_job(queue)
        while batch.has_lane(queue.name) and not self._stopping.is_set():
            if not self._take_job(queue):
                return False
        return True

    def _take_job(self, queue: Queue) -> bool:
        """Take one job off a queue. False when it is empty."""
        rq_job = self._dequeue(queue)
        if rq_job is None:
            return False
        execution = self.prepare_execution(rq_job)
        self.prepare_job_execution(rq_job, remove_from_intermediate_queue=True)
        model = self.models[queue.name]
        attempt = self.store.start(rq_job.id, self.name, model.card.numerics)
        record = self._record(rq_job.id) if attempt else None
        if record is not None:
            active = ActiveJob(record.id, record.request, attempt, model, model.card.numerics)
            self._admit(record, model, Lease(rq_job, queue, execution, active))
        else:
            self._forget(rq_job, execution)
        return True

    def _dequeue(self, queue: Queue) -> Job | None:
        """The next job of a queue, None when it is empty. What is no job of ours is dropped unread."""
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
        log.warning("queue %s: %s is no job of ours and is dropped (%s)", queue.name, job_id, type(error).__name__)
        queue.intermediate_queue.remove(job_id)
        self.connection.delete(Job.key_for(job_id))

    def _record(self, job_id: str) -> JobRecord | None:
        """The job; None when it is gone, or not to be read (a newer front end's, say): that ends it."""
        try:
            return self.store.job(job_id)
        except (KeyError, TypeError, ValueError) as error:
            write = Write(job_id)
            write.end("failed", {"code": "unservable", "message": f"this worker cannot read the request: {error}"})
            self.store.write(write)
            return None

    def _admit(self, record: JobRecord, model: PixelModel, lease: Lease) -> None:
        with self._leases_lock:
            before = self._leases.get(record.id)
        if before is not None:
            # Our lease ran out while we were slow, and RQ gave us our own job again.
            before.active.over = True
            self._end_execution(before)
        self.engine.batch.evict(record.id)
        with self._leases_lock:
            self._leases[record.id] = lease
            self._to_evict.discard(record.id)
        try:
            newcomers = trajectories(record, model)
        except ModelError as error:
            self.publisher.fail(lease.active, "unservable", str(error))
            return
        self.engine.batch.admit(newcomers)
        facts = {"model": record.request.model, "images": record.request.n, "attempt": lease.active.attempt}
        log.info("job started", extra={"job": record.id, "request_id": record.request_id, **facts})

    def _drain(self) -> None:
        """Give back what would take long, finish the rest."""
        batch = self.engine.batch
        evaluations = FINISH_SECONDS * (self._speed.per_second or 0.0)
        for job, pending in sorted(batch.pending_by_job().items(), key=lambda item: item[1]):
            evaluations -= pending
            if evaluations < 0:
                self._give_back(job)
        end = time.monotonic() + 2 * FINISH_SECONDS
        while time.monotonic() < end and self._turn():
            pass
        for job in batch.pending_by_job():
            self._give_back(job)

    def _give_back(self, job: str) -> None:
        self.engine.batch.evict(job)
        with self._leases_lock:
            lease = self._leases.get(job)
        if lease is not None:
            log.info("stopping: job %s is given back", job)
            self.publisher.give_back(lease.active)

    # The publisher's thread

    def _release(self, active: ActiveJob, given_back: bool) -> None:
        """A job is over for this worker: end or return RQ's side of it."""
        with self._leases_lock:
            lease = self._leases.get(active.id)
            if lease is None or lease.active is not active:
                return
            del self._leases[active.id]
            self._to_evict.add(active.id)
        try:
            if given_back:
                self._requeue(lease)
                return
            record = self.store.job(active.id)
            if record is None or record.terminal:
                self._forget(lease.rq_job, lease.execution)
                _tell(record, lease)
            else:
                self._end_execution(lease)  # another attempt has it, and RQ's job with it
        except REDIS_ERRORS as error:
            # Its lease runs out; whoever takes it up then finds the job over, or does it again.
            log.warning("job %s: RQ was not told (%s)", active.id, error)

    def _end_execution(self, lease: Lease) -> None:
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(lease.rq_job, pipeline=pipeline, execution=lease.execution)
            pipeline.execute()

    def _forget(self, rq_job: Job, execution: Execution) -> None:
        # Not by Job.delete: in rq 3.0.0 it raises for a minute after the lease of a dead worker ran out.
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(rq_job, pipeline=pipeline, execution=execution)
            pipeline.delete(rq_job.key, rq_job.execution_registry.key)
            pipeline.execute()

    def _requeue(self, lease: Lease) -> None:
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(lease.rq_job, pipeline=pipeline, execution=lease.execution)
            lease.rq_job.set_status(JobStatus.QUEUED, pipeline=pipeline)
            lease.queue.push_job_id(lease.rq_job.id, pipeline=pipeline, at_front=True)
            pipeline.publish(model_channel(lease.queue.name), lease.rq_job.id)
            pipeline.execute()

    # The housekeeper's thread

    def _keep_house(self) -> None:
        while not self._ended.is_set():
            try:
                self._report()
                self._renew_leases()
                self._collect_abandoned()
            except REDIS_ERRORS as error:
                log.warning("housekeeping waits: %s", error)
            except Exception:
                log.exception("housekeeping failed")
            self._ended.wait(self.settings.lease / 4)

    def _report(self) -> None:
        running, pending = self._load
        report = WorkerReport(
            name=self.name,
            models=[model.card.model_dump() for model in self.models.values()],
            max_batch=self.settings.max_batch,
            trajectories=running,
            pending_evaluations=pending,
            evaluations_per_second=self._speed.per_second,
            reserved=self.engine.batch.reserved,
            places=self.engine.batch.places,
            paces=self._speed.paces(),
        )
        if not self._stopping.is_set():
            self.store.report(report, ttl=self.settings.lease)

    def _renew_leases(self) -> None:
        self.heartbeat()
        with self._leases_lock:
            leases = list(self._leases.values())
        for lease in leases:
            self.maintain_heartbeats(lease.rq_job, lease.execution)

    def _collect_abandoned(self) -> None:
        """Requeue the jobs of dead workers; fail those that have had all their attempts."""
        for queue in self.queues:
            mine = self.connection.set(f"denoised:cleaning:{queue.name}", self.name, nx=True, ex=5)
            if not mine:
                continue
            clean_registries(queue)
            queue.intermediate_queue.cleanup(self, queue)
            registry = FailedJobRegistry(queue=queue)
            for job_id in registry.get_job_ids(cleanup=False):
                self._fail_abandoned(job_id)
                registry.remove(job_id)
                self.connection.delete(Job.key_for(job_id), Result.get_key(job_id))

    def _fail_abandoned(self, job_id: str) -> None:
        record = self.store.job(job_id)
        if record is None or record.terminal:
            return
        message = f"the worker was lost {record.attempt} time(s) while it did this job"
        self.store.fail(record, "worker_lost", message)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """RQ's lease on a job, in seconds."""
        return max(1, round(self.settings.lease))

    # Beginning and end

    def _note_cancel(self, job_id: str) -> None:
        """In the listener's thread: have a job of ours leave the batch before the next evaluation."""
        with self._leases_lock:
            if job_id in self._leases:
                self._to_evict.add(job_id)
        self._woken.set()

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        """As it is: RQ would stretch the client's time-outs to minutes, for a blocking call we never make."""
        return connection

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._stopping.set()
        self._woken.set()

    def _leave(self) -> None:
        try:
            self.store.forget_worker(self.name)
            self.register_death()  # type: ignore[no-untyped-call]
        except REDIS_ERRORS as error:
            log.warning("left without a word: %s", error)


def _tell(record: JobRecord | None, lease: Lease) -> None:
    """The log's line on a job that is over."""
    if record is not None:
        facts = {"status": record.status, "code": (record.error or {}).get("code"), "evaluations": record.evaluations}
        log.info("job over", extra={"job": record.id, "request_id": record.request_id, **facts, "spent": lease.spent})
