"""The RQ worker: takes jobs off the queues, holds their leases, and returns them.

This and `app.admission.queue.job_queue`, which enqueues, are the two files that import RQ. RQ holds the queues and the
leases; `jobs.store.store` holds the jobs. Five threads: the engine's (`worker.loop`), the job fetcher, the publisher,
the housekeeper, and the listener for new jobs and cancels.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from types import FrameType
from typing import Any
from uuid import uuid4

import redis
from rq import Queue
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.worker.base import BaseWorker
from rq.worker_registration import REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY, register

from denoised.jobs.errors import RecordError, StoreError, StoreUnavailable
from denoised.jobs.redis.deadline import reachable
from denoised.jobs.results.sweeper import Sweeper
from denoised.jobs.store.models.kept_models import kept_models
from denoised.jobs.store.queue_keys import QueueKeys
from denoised.jobs.store.store import Store
from denoised.jobs.worker_report import WorkerReport
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.housekeeper import ROUNDS, Housekeeper
from denoised.worker.delivery.listener import Listener
from denoised.worker.delivery.model_host import ModelHost
from denoised.worker.delivery.model_names import ModelNames
from denoised.worker.delivery.rq_delivery import RqDelivery, RqNames, RqSource, raise_unless_damaged
from denoised.worker.delivery.worker_description import describe_loop
from denoised.worker.delivery.worker_queues import WorkerQueues
from denoised.worker.devices import device_label
from denoised.worker.engine.canary import Canary
from denoised.worker.engine.speed import Speed
from denoised.worker.errors import ModelConflict
from denoised.worker.loop import Loop
from denoised.worker.models.model_loader import ROUND_SECONDS, Loading, ModelLoader
from denoised.worker.settings import WorkerSettings

KEEP_SECONDS = 60.0  # between two times that the models' cards and speeds are kept for a time without workers
REGISTER_SECONDS = 1.0  # between two tries to register while Redis refuses

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


class BatchingWorker(BaseWorker):
    """One process, one device, one running batch.

    models: the served models by name; each has a queue of that name.
    speed: what is known of their speed already.
    canaries: with which the device is checked after errors.
    loading: how models are loaded while it serves; None: they stay as they are.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        client: redis.Redis,
        store: Store,
        settings: WorkerSettings,
        speed: Speed | None = None,
        canaries: Sequence[Canary] = (),
        loading: Loading | None = None,
    ) -> None:
        name = f"worker-{uuid4().hex[:12]}"
        self._queues = WorkerQueues(models, partial(_queue, client), _keys)
        super().__init__(
            self._queues.queues, name=name, connection=client, serializer=JSONSerializer, job_class=InertJob
        )
        self.store = store
        self.settings = settings
        self.loop = Loop(models, store, settings, name, self._take, speed or Speed(), canaries)
        self._worker_sets = [REDIS_WORKER_KEYS, *(WORKERS_BY_QUEUE_KEY % queue.name for queue in self._queues.queues)]
        self._source = RqSource(client, name, _names(client, self.executions_key), math.ceil(settings.lease) + 1)
        self._clock_offset = 0.0  # of Redis' clock against ours, in seconds
        self._listener = Listener(client, models, wake=self.loop.wake, cancel=self.loop.cancel)
        digests = {name: model.card.digest for name, model in models.items()}
        self._names = ModelNames(store, name, digests, settings.lease)
        self._device = device_label(next((str(model.device) for model in models.values()), "cpu"))
        self._conflict: ModelConflict | None = None
        self._keep_at = 0.0  # by `time.monotonic`
        self._housekeeper = Housekeeper(store, lambda: self._queues.served, settings.lease, self._renew, self._report)
        self._loader: ModelLoader | None = None
        if loading is not None:
            host = ModelHost(
                self._names,
                self._queues,
                self._listener,
                self._take,
                self._register_queues,
                self._waits,
                self.loop.leases,
                self.loop.last_used,
            )
            seconds = min(ROUND_SECONDS, settings.lease / ROUNDS)
            self._loader = ModelLoader(loading, self.loop.models, self.loop.changes, store, host, seconds)

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Serve until SIGTERM or SIGINT, then finish or requeue what runs. Returns whether any job was run.

        Raises:
            ModelConflict: when another worker serves another model under the name of one of these.
            DeviceError: when the device has failed; the jobs are back in their queues.
        """
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        if not self._register():
            return False
        for thread in (self.loop.publisher, self._housekeeper, self._listener, self._loader):
            if thread is not None:
                thread.start()
        sweeper = Sweeper(self.store.results)
        if self.store.results.store is not None:
            sweeper.start()
        log.info("serving %s, %d batch slots", ", ".join(self.loop.models), self.settings.max_batch)
        written = False
        try:
            written = self.loop.run()
        finally:
            self._housekeeper.stop()
            self._listener.stop()
            if self._loader is not None:
                self._loader.stop()
            sweeper.stop()
            if written:
                self._leave()
        if self.loop.failure is not None:
            raise self.loop.failure
        if self._conflict is not None:
            raise self._conflict
        return self.loop.speed.total > 0

    def _register(self) -> bool:
        """Claim the models' names and register with RQ, as soon as Redis accepts it.

        False when the worker is stopped before.

        Raises:
            ModelConflict: see `work`.
        """
        while not self.loop.stopping.is_set():
            try:
                if self._names.acquire(self.loop.stopping):
                    self.store.repair_keys(dict.fromkeys(self._worker_sets, "set"))
                    with reachable():
                        self.register_birth()  # type: ignore[no-untyped-call]
                    return True
            except StoreUnavailable as error:
                log.warning("worker waits for Redis", extra={"reason": str(error)})
                self.loop.stopping.wait(REGISTER_SECONDS)
        return False

    # Queues

    def _take(self, model: str, waited: float = 0.0, passed_over: Iterable[str] = ()) -> RqDelivery | None:
        """Take the next job of a model and get a lease on it; see `RqSource.take`."""
        while True:
            delivery, dropped = self._source.take(self._queues.keys_of(model), waited, passed_over)
            for job_id in dropped:
                log.warning("foreign queue entry dropped", extra={"model": model, "job": job_id})
            if delivery is not None or not dropped:
                return delivery

    def _waits(self, model: str) -> bool:
        return self._source.waits(self._queues.keys_of(model))

    # The housekeeper's thread

    def _renew(self) -> float:
        """Renew all leases in one round trip; with a slow Redis, one by one would take longer than a lease.

        Returns Redis' time in seconds.
        """
        with reachable(), self.connection.pipeline(transaction=False) as pipeline:
            for lease in self.loop.leases.all():
                lease.delivery.renew(pipeline)
            self.heartbeat(pipeline=pipeline)
            pipeline.time()
            *_, (seconds, microseconds) = raise_unless_damaged(pipeline.execute(raise_on_error=False))
        now = float(seconds + microseconds / 1e6)
        self._clock_offset = now - time.time()
        return now

    def _report(self) -> None:
        """Publish what this worker does; stop if its models' names were taken while it was cut off from Redis."""
        try:
            self._names.renew()
            self.loop.shared = self._names.shared()
            for queue in self._queues.served:
                self._source.restore_turns(queue)
        except ModelConflict as conflict:
            self._conflict = conflict
            self.loop.stop()
        except RecordError as error:
            log.warning("claims unreadable", extra={"reason": str(error)})
        report = self._current_report()
        if not self.loop.stopping.is_set():
            self.store.workers.report(report, ttl=self.settings.lease)
            self._keep_models(report)
        self.store.workers.add_counters(self.name, asdict(self.loop.counters))

    def _register_queues(self) -> None:
        """Register the queues of this worker's models with RQ, and keep the models soon."""
        left = {queue.name for queue in self.queues} - {queue.name for queue in self._queues.queues}
        self.queues = self._queues.queues
        with reachable(), self.connection.pipeline() as pipeline:
            for name in left:
                pipeline.srem(WORKERS_BY_QUEUE_KEY % name, self.key)
            register(self, pipeline)
            pipeline.execute()
        self._keep_at = 0.0

    def _keep_models(self, report: WorkerReport) -> None:
        """Now and then, keep what the front end needs to know of the models while no worker serves them."""
        if time.monotonic() < self._keep_at:
            return
        try:
            self.store.workers.kept.keep(kept_models(report))
            self._keep_at = time.monotonic() + KEEP_SECONDS
        except RecordError as error:
            log.warning("models not kept", extra={"reason": str(error)})

    def _current_report(self) -> WorkerReport:
        loader = self._loader
        report = describe_loop(self.loop, self.name, self._device, time.time() + self._clock_offset)
        cards = report.models if loader is None else [card.model_dump() for card in loader.cards()]
        return replace(report, models=cards, states=[] if loader is None else loader.states())

    # Start and stop

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        """Keep the client: RQ would stretch its timeouts to minutes, for a blocking call that is never made here."""
        return connection

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.loop.stop()

    def _leave(self) -> None:
        try:
            self.store.workers.add_counters(self.name, asdict(self.loop.counters))
            self.store.workers.kept.keep(kept_models(self._current_report()))
            self.store.workers.remove(self.name)
            self._names.release()
            with reachable():
                self.register_death()  # type: ignore[no-untyped-call]
        except StoreError as error:
            log.warning("worker not unregistered", extra={"reason": str(error)})


def _queue(client: redis.Redis, name: str) -> Queue:
    return Queue(name, connection=client, serializer=JSONSerializer, job_class=InertJob)


def _keys(queue: Queue) -> QueueKeys:
    """RQ's keys of a queue."""
    return QueueKeys(
        model=queue.name,
        waiting=queue.key,
        intermediate=queue.intermediate_queue_key,
        started=StartedJobRegistry(queue=queue).key,
        job_prefix=str(Job.key_for("")),
    )


def _names(client: redis.Redis, of_worker: str) -> RqNames:
    execution = Execution("", "", client).key.removesuffix(":")
    return RqNames(execution, ExecutionRegistry("", client).key, of_worker, Queue.redis_queues_keys)
