"""The producer's side of the queue. One of the two files that import RQ.

There is one RQ queue per model, caller and priority (`jobs.store.waiting_lists`). An RQ job has an id, its cost and its
weight: the request is in the store, as JSON, and RQ's serializer is
JSON too, so nothing that is read from Redis is ever executed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from denoised.app.admission.queue.arrivals import ArrivalHistory
from denoised.app.admission.queue.queue_replies import count_of, credit_of, job_ids_of, readable, text_of, written_key
from denoised.app.admission.queue.queue_snapshot import QueueForecast, QueueSnapshot, total_work
from denoised.app.admission.queue.queue_totals import QueueTotals
from denoised.app.admission.queue.totals_reader import TotalsReader
from denoised.jobs.errors import JobUnconfirmed, RecordError, StoreUnavailable
from denoised.jobs.format import UnreadableLog
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.redis.memory import Memory
from denoised.jobs.redis.refusals import store_error
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.store import NO_INPUTS, Store
from denoised.jobs.store.waiting_lists import (
    COST,
    JOIN,
    READ_ENDS,
    READ_LISTS,
    WEIGHT,
    CallerQueue,
    draw_order,
    queue_name,
)
from denoised.jobs.worker_report import WorkerReport

log = logging.getLogger("denoised.api")

MAX_FORECAST_AGE = 0.5  # seconds; an older forecast is not used for a job's estimate
MAX_CACHED_RECORDS = 10_000
LONG_QUEUE = 200  # waiting jobs, from which on admission reads their totals alone
FUNCTION = "denoised.sample"  # RQ requires a name; our worker class never calls it


class JobQueue:
    """Enqueues, removes and estimates jobs.

    Raises:
        StoreUnavailable: from every method, when Redis does not answer in time.
    """

    def __init__(
        self, client: redis.Redis, store: Store, max_attempts: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._clock = clock
        self._store = store
        self._max_attempts = max_attempts
        self._records: OrderedDict[str, JobRecord] = OrderedDict()  # cache by job id
        self._forecasts: dict[str, QueueForecast] = {}
        self._arrivals: defaultdict[str, ArrivalHistory] = defaultdict(ArrivalHistory)  # by model
        self._queues: dict[str, Queue] = {}
        self._clock_offset = 0.0  # of Redis' clock against ours, in seconds
        self._unreadable = UnreadableLog()
        self._totals = TotalsReader(client, store, Queue.redis_queue_namespace_prefix, store.listing.records)
        self._waiting = 0  # jobs, when the queues were read last

    def enqueue(self, job: JobRecord, estimate: QueueEstimate, inputs: Mapping[str, bytes] = NO_INPUTS) -> None:
        """Accept a job with a new id: its record, first event and queue entry are written in one transaction.

        inputs: the pictures that it starts from, PNGs by key.

        Raises:
            StoreFull: when Redis is out of memory.
            JobUnconfirmed: when its reply is lost.
        """
        with self._client.pipeline() as pipeline:
            self._accept(job, estimate, pipeline, inputs)

    def enqueue_once(self, job: JobRecord, estimate: QueueEstimate, inputs: Mapping[str, bytes] = NO_INPUTS) -> bool:
        """Like `enqueue`, for an id that may exist; returns False and writes nothing when it does."""
        with self._client.pipeline() as pipeline, contextlib.suppress(redis.exceptions.WatchError):
            if self._store.reserve(job.id, pipeline):
                self._accept(job, estimate, pipeline, inputs)
                return True
        if self._store.job(job.id) is None:
            # redis-py also raises WatchError when the connection breaks while a key is watched.
            raise StoreUnavailable("the connection to Redis broke before the job was accepted")
        return False

    def _accept(self, job: JobRecord, estimate: QueueEstimate, pipeline: Pipeline, inputs: Mapping[str, bytes]) -> None:
        rq_job = Job.create(
            FUNCTION,
            id=job.id,
            connection=self._client,
            serializer=JSONSerializer,
            timeout=-1,
            result_ttl=0,
        )
        job = replace(job, max_attempts=self._max_attempts)
        queued = {"queue_position": estimate.queue_position, "eta_seconds": estimate.eta_seconds}
        with self._store.reachable():  # RQ reads the version of Redis at the first enqueue
            self._queue_of(job).enqueue_job(rq_job, pipeline=pipeline)
        pipeline.hset(Job.key_for(job.id), mapping={COST: job.request.evaluations, WEIGHT: repr(job.weight)})
        pipeline.eval(JOIN, 1, keys.turns(job.request.model), job.owner)
        self._store.create(job, queued, pipeline, inputs)
        written = [written_key(arguments) for arguments, _ in cast("Any", pipeline).command_stack]
        try:
            with self._store.reachable():
                replies = pipeline.execute(raise_on_error=False)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError):
                raise JobUnconfirmed(job.id, str(error)) from error
            raise
        with self._store.reachable():
            self._check_accepted(job, list(zip(written, replies, strict=True)))
        self._records[job.id] = job
        self._arrivals[job.request.model].add(total_work(job))

    def _check_accepted(self, job: JobRecord, replies: Sequence[tuple[str, object]]) -> None:
        """Check the replies to the transaction, each with the key that its command has written.

        A damaged key is removed, so that it costs one request at most: a counter or list fails alone; without its
        record or its place in the queue, the job is withdrawn.

        Raises:
            StoreUnavailable: when the job was not accepted.
        """
        errors = [(key, store_error(reply)) for key, reply in replies if isinstance(reply, redis.exceptions.RedisError)]
        if not errors:
            return
        for key, error in errors:
            if not isinstance(error, RecordError):
                raise error
            log.warning("damaged key", extra={"job": job.id, "key": key, "reason": str(error)})
        queue = self._queue_of(job)
        shared = {queue.key: "list", queue.redis_queues_keys: "set", keys.jobs(job.owner): "zset"}
        shared[keys.kept_images(job.owner)] = "zset"
        shared |= {keys.input_jobs(key): "set" for key in job.inputs.values()}
        self._store.repair_keys({**shared, keys.JOB_TOTALS: "hash"})
        if {key for key, _ in errors} & {queue.key, keys.job(job.id), keys.events(job.id), Job.key_for(job.id)}:
            self._client.delete(Job.key_for(job.id))
            self._store.discard(job)
            raise StoreUnavailable(f"Redis refuses a place in the queue of {job.request.model}, which was damaged")

    def view(self, models: Sequence[str]) -> QueueSnapshot | QueueTotals:
        """The queues of some models as admission needs them: a snapshot, or totals if many jobs wait."""
        view = self.totals(models) if self._waiting > LONG_QUEUE else self.snapshot(models)
        self._waiting = view.jobs
        return view

    def totals(self, models: Sequence[str]) -> QueueTotals:
        """The totals of the queues. One round trip, and more for the jobs that are new in them."""
        with self._store.reachable(), self._client.pipeline(transaction=False) as pipeline:
            for model in models:
                queue = self._queue(model)
                pipeline.eval(READ_ENDS, 2, queue.key, keys.turns(model))
                pipeline.zrange(StartedJobRegistry(queue=queue).key, 0, -1)
            pipeline.info("memory")
            pipeline.time()
            *replies, memory, (seconds, microseconds) = readable(
                pipeline.execute(raise_on_error=False), self._unreadable
            )
        started = [job_ids_of(reply) for reply in replies[1::2]]
        self._cache_records(list(chain(*started)))
        ends = zip(models, replies[::2], strict=True)
        return QueueTotals(
            {model: self._totals.callers(model, reply) for model, reply in ends},
            {model: self._cached_records(ids) for model, ids in zip(models, started, strict=True)},
            Memory.of(memory),
            seconds + microseconds / 1e6,
        )

    def snapshot(self, models: Sequence[str]) -> QueueSnapshot:
        """The queues of some models. One round trip, and a second one for records that are not cached."""
        taken_at = self._clock()
        with self._store.reachable(), self._client.pipeline(transaction=False) as pipeline:
            for model in models:
                queue = self._queue(model)
                pipeline.eval(READ_LISTS, 3, queue.key, keys.turns(model), keys.caller_credits(model))
                # RQ's own method would also clean up the registry, which is the workers' task.
                pipeline.zrange(StartedJobRegistry(queue=queue).key, 0, -1)
            pipeline.hgetall(keys.JOB_TOTALS)
            pipeline.info("memory")
            pipeline.time()
            replies = readable(pipeline.execute(raise_on_error=False), self._unreadable)
        *replies, totals, memory, (seconds, microseconds) = replies
        for model in models:
            self._arrivals[model].read(taken_at, count_of(dict(totals).get(keys.accepted_jobs(model).encode())))
        store_time = seconds + microseconds / 1e6
        self._clock_offset = store_time - time.time()
        waiting, started = replies[::2], [job_ids_of(reply) for reply in replies[1::2]]
        lists = [ids for queues in waiting for _, _, _, *lists in queues for ids in lists]
        self._cache_records([*(text_of(job_id) for ids in lists for job_id in ids), *chain(*started)])
        queues = {
            model: [self._caller_queue(*each) for each in reply] for model, reply in zip(models, waiting, strict=True)
        }
        return QueueSnapshot(
            taken_at,
            {model: draw_order(each) for model, each in queues.items()},
            {model: self._cached_records(ids) for model, ids in zip(models, started, strict=True)},
            Memory.of(memory),
            store_time,
            queues,
        )

    def _caller_queue(self, owner: bytes, is_new: int, credit: bytes, *lists: Sequence[bytes]) -> CallerQueue:
        """A part of the reply of `READ_LISTS`, with the records that can be read."""
        records = tuple(self._cached_records(list(map(text_of, ids))) for ids in lists)
        return CallerQueue(text_of(owner), records, bool(is_new), credit_of(credit))

    def remove(self, job: JobRecord) -> None:
        """Remove a canceled job from its queue, if it is still there."""
        try:
            with self._store.reachable():
                # Front ends of earlier versions added all jobs to the model's own queue.
                if self._queue_of(job).remove(job.id) or self._queue(job.request.model).remove(job.id):
                    self._client.delete(Job.key_for(job.id))  # Job.delete raises when its worker has just died
        except RecordError as error:  # then it is in no queue, or RQ's job is not a hash
            self._unreadable.skip("key", f"queue of {job.id}", error)

    def estimate_new(
        self, job: JobRecord, snapshot: QueueSnapshot | QueueTotals, workers: Sequence[WorkerReport]
    ) -> QueueEstimate:
        """The estimate for a job that is not in the queue yet."""
        if isinstance(snapshot, QueueTotals):
            return snapshot.estimate(job, workers)
        return self._forecast(job.request.model, snapshot.with_job(job), workers, until=job.id).estimate(job.id)

    def estimate(self, job: JobRecord, workers: Sequence[WorkerReport]) -> QueueEstimate:
        """The queue position of a queued job, and the seconds until a job is done."""
        if job.terminal:
            return QueueEstimate()
        model = job.request.model
        forecast = self._forecasts.get(model)
        if forecast is None or forecast.age > MAX_FORECAST_AGE or job.id not in forecast.ends:
            served = {card["name"] for worker in workers for card in worker.models}
            forecast = self._forecast(model, self.snapshot(sorted({model, *served})), workers)
            self._forecasts[model] = forecast
        estimate = forecast.estimate(job.id)
        if job.status == "queued":
            return QueueEstimate(estimate.queue_position or 0, estimate.eta_seconds)
        return QueueEstimate(None, estimate.eta_seconds if estimate.eta_seconds is not None else self._extrapolate(job))

    def _extrapolate(self, job: JobRecord) -> float | None:
        """Seconds until a running job is done at its own speed so far; None before its first step."""
        if not job.step or job.started_at is None:
            return None
        running = max(0.0, time.time() + self._clock_offset - job.started_at)
        return round(running * max(0, job.request.run_steps - job.step) / job.step, 2)

    def _forecast(
        self, model: str, snapshot: QueueSnapshot, workers: Sequence[WorkerReport], until: str | None = None
    ) -> QueueForecast:
        evaluations = self._store.listing.active_evaluations([job.id for job in snapshot.running(model)])
        return snapshot.forecast(model, workers, evaluations, until, self._arrivals[model])

    def _cached_records(self, job_ids: Sequence[str]) -> list[JobRecord]:
        return [record for job_id in job_ids if (record := self._records.get(job_id)) is not None]

    def _cache_records(self, job_ids: Sequence[str]) -> None:
        """Read the records that are not cached; evict the oldest."""
        missing = [job_id for job_id in job_ids if job_id not in self._records]
        for record in self._store.listing.records(missing).values():
            if record is not None:
                self._records[record.id] = record
        while len(self._records) > max(MAX_CACHED_RECORDS, len(job_ids)):
            self._records.popitem(last=False)

    def _queue_of(self, job: JobRecord) -> Queue:
        """The queue of a job's caller and priority."""
        name = queue_name(job.request.model, job.owner, job.request.priority)
        queue, own = self._queue(job.request.model), Queue(name, connection=self._client, serializer=JSONSerializer)
        own.redis_server_version = queue.get_redis_server_version()
        return own

    def _queue(self, model: str) -> Queue:
        """A model's own queue; cached, because the object caches the version of Redis."""
        if model not in self._queues:
            self._queues[model] = Queue(model, connection=self._client, serializer=JSONSerializer)
        return self._queues[model]
