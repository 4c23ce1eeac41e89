"""Fetches jobs from their queues in a thread of its own, so that the engine waits neither for Redis nor for noise.

The engine says what it has capacity for; jobs fetched by its next turn take part in that turn.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from denoised.jobs.errors import RecordError, StoreUnavailable
from denoised.jobs.record import JobRecord
from denoised.jobs.store.store import StartedAttempt, Store
from denoised.jobs.store.update import JobUpdate
from denoised.model.errors import ModelError, PlanError
from denoised.model.serving.card import ModelCard
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.leases import Delivery
from denoised.worker.delivery.request_check import check_request
from denoised.worker.engine.resume import ResumePoint, from_bytes
from denoised.worker.engine.trajectory import Trajectory, trajectories
from denoised.worker.errors import ResumeError
from denoised.worker.out_of_memory import is_out_of_memory

log = logging.getLogger("denoised.worker")

POLL_SECONDS = 0.25  # between two looks into a queue that was empty, unless `wake` is called
MAX_REGISTERS = 8  # of a plan
RESUME_HEAD_BYTES = 4096
RETRY_SECONDS = 1.0  # between two tries while Redis does not answer


@dataclass(frozen=True)
class FetchedJob:
    """A job whose attempt has started, and its unfinished images."""

    delivery: Delivery
    started: StartedAttempt
    trajectories: Sequence[Trajectory] = ()


@dataclass(frozen=True)
class Capacity:
    """What a model's batch can take: so many images, or, while no slot is free, one more job that waits for one."""

    images: int
    one_more: bool


class JobFetcher(threading.Thread):
    """Fetches jobs while there is capacity.

    models: the served models by name.
    take(model): the next delivery from that model's queue, None when it is empty.
    name: the worker's.
    notify(): called, in this thread, after each job.
    stopping: nothing is fetched once it is set.

    Attributes:
        short_of_memory: a job could not be started for lack of memory. The engine's thread resets it.
    """

    def __init__(
        self,
        store: Store,
        models: Mapping[str, ServedModel],
        take: Callable[[str], Delivery | None],
        name: str,
        notify: Callable[[], None],
        stopping: threading.Event,
    ) -> None:
        super().__init__(name="job fetcher", daemon=True)
        self._store = store
        self._models = models
        self._take = take
        self._worker = name
        self._notify = notify
        self._stopping = stopping
        self.short_of_memory = False
        self._changed = threading.Condition()  # guards the attributes below, except the last
        self._capacity: Mapping[str, Capacity] = {}
        self._fetched: deque[FetchedJob] = deque()
        self._may_hold_jobs = dict.fromkeys(models, True)
        self._poll_at = dict.fromkeys(models, 0.0)  # when a queue that was empty is asked again
        self._one_more_used: set[str] = set()  # models whose `one_more` has been fetched
        self._failure: Exception | None = None
        self._unstarted: Delivery | None = None  # taken off its queue, not started: Redis stopped answering

    def wake(self, model: str | None = None) -> None:
        """There may be new jobs, for one model or, without a name, for any."""
        with self._changed:
            self._may_hold_jobs |= dict.fromkeys(self._may_hold_jobs if model is None else [model], True)
            self._changed.notify()

    def take_fetched(self) -> list[FetchedJob]:
        """The jobs fetched since the last call, in order. Nothing more is fetched until `set_capacity`.

        Raises:
            Exception: the one that ended the thread.
        """
        with self._changed:
            if self._failure is not None:
                raise self._failure
            jobs = list(self._fetched)
            self._fetched.clear()
            self._capacity = {}
        return jobs

    def set_capacity(self, capacity: Mapping[str, Capacity]) -> None:
        """Say what there is capacity for, until the next call of `take_fetched`."""
        with self._changed:
            self._capacity = capacity
            self._one_more_used.clear()
            if any(map(self._is_due, self._models)):
                self._changed.notify()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                with self._changed:
                    if not any(map(self._is_due, self._models)):
                        self._changed.wait(POLL_SECONDS)
                        continue
                self._fetch()
        except Exception as error:
            log.exception("fetching jobs has failed")
            with self._changed:
                self._failure = error
            self._notify()

    def _is_due(self, model: str) -> bool:
        """Whether there is capacity for a job of a queue that may hold one."""
        return self._has_capacity(model) and (self._may_hold_jobs[model] or time.monotonic() >= self._poll_at[model])

    def _has_capacity(self, model: str) -> bool:
        capacity = self._capacity.get(model)
        if capacity is None:
            return False
        images = Counter[str]()
        for job in self._fetched:
            images[job.started.record.request.model] += job.started.record.request.n
        one_more = capacity.one_more and not images[model] and model not in self._one_more_used
        return capacity.images > images[model] or one_more

    def _fetch(self) -> None:
        """Fetch jobs until the capacity is used or the queues are empty."""
        try:
            if self._unstarted is not None:
                self._start(self._unstarted)
            for model in self._models:
                self._fetch_from(model)
        except (StoreUnavailable, MemoryError) as error:
            # The batch continues.
            log.warning("fetching jobs waits", extra={"reason": f"{type(error).__name__}: {error}"})
            self._stopping.wait(RETRY_SECONDS)

    def _fetch_from(self, model: str) -> None:
        while not self._stopping.is_set():
            with self._changed:
                if not self._is_due(model):
                    return
                self._may_hold_jobs[model] = False  # unless `wake` is called from here on
                self._poll_at[model] = time.monotonic() + POLL_SECONDS
            delivery = self._take_from(model)
            if delivery is None:
                return
            if delivery.more:
                with self._changed:
                    self._may_hold_jobs[model] = True
            self._start(delivery)

    def _take_from(self, model: str) -> Delivery | None:
        """The next delivery; None, too, when the queue's key is damaged."""
        try:
            return self._take(model)
        except RecordError as error:
            log.warning("queue unreadable", extra={"model": model, "reason": str(error)})
            return None

    def _start(self, delivery: Delivery) -> None:
        """Start an attempt at a job."""
        self._unstarted = delivery  # until it is started: nothing is lost when Redis stops answering in between
        job = self._start_attempt(delivery)
        if job is None:
            delivery.ack()
        elif isinstance(job, Exception):
            self._end_unstarted(delivery, job)
        else:
            with self._changed:
                if self._capacity.get(delivery.model, Capacity(0, False)).images <= 0:
                    self._one_more_used.add(delivery.model)
                self._fetched.append(job)
            self._notify()
        self._unstarted = None

    def _start_attempt(self, delivery: Delivery) -> FetchedJob | Exception | None:
        """None when the job is over; the error when this worker cannot start it, which concerns this job alone."""
        model = self._models[delivery.model]
        try:
            started = self._store.start_attempt(
                delivery.job, self._worker, model.card.numerics, delivery.execution, resume_limit(model)
            )
            if started is None:
                return None
            started = replace(started, record=_for_model(started.record, model.card))
            check_request(started.record.request, model.card)
            return FetchedJob(delivery, started, _trajectories(started, model))
        except StoreUnavailable:
            raise
        except Exception as error:
            return error

    def _end_unstarted(self, delivery: Delivery, error: Exception) -> None:
        """Fail a job that could not be started, or requeue it if another worker may have the memory."""
        if not is_out_of_memory(error):
            self._fail(delivery.job, error)
            delivery.ack()
            return
        log.warning("job not started: out of memory", extra={"job": delivery.job, "reason": str(error)})
        queued = self._store.requeue_unstarted(delivery.job)
        self.short_of_memory = queued
        with self._changed:
            self._capacity = {}
        (delivery.requeue if queued else delivery.ack)()
        self._notify()
        if queued:
            self._stopping.wait(RETRY_SECONDS)  # other workers take it first

    def _fail(self, job_id: str, error: Exception) -> None:
        code, message = _failure(error)
        log.warning("job unservable", extra={"job": job_id, "code": code, "reason": message})
        if code == "internal_error":
            log.error("an attempt could not be started", exc_info=error, extra={"job": job_id})
        update = JobUpdate(job_id)
        update.end("failed", {"code": code, "message": message})
        self._store.write(update)


def resume_limit(model: ServedModel) -> int:
    """The largest resume point that a job of a model can have, in bytes."""
    card = model.card
    scale = (card.max_pixels or 0) / (card.width * card.height)  # images may be larger than the model's own size
    image = MAX_REGISTERS * 4 * math.prod(model.shape) * max(1.0, scale)
    return RESUME_HEAD_BYTES + card.max_images * (math.ceil(image) + RESUME_HEAD_BYTES)


def _failure(error: Exception) -> tuple[str, str]:
    """The code and the message of a job that could not be started."""
    if isinstance(error, RecordError | ModelError):
        return "unservable", str(error)
    return "internal_error", f"{type(error).__name__}: {error}"


def _for_model(record: JobRecord, card: ModelCard) -> JobRecord:
    """A job as this model takes it: if the model has changed since the job was accepted, its classes may have, too.

    Raises:
        PlanError: if the model has no class of that name any more.
    """
    if record.digest is None or record.digest == card.digest:
        return record
    fields = {"job": record.id, "request_id": record.request_id, "accepted": record.digest, "here": card.digest}
    log.warning("the model has changed since the job was accepted", extra=fields)
    name = record.request.label_name
    if name is None:
        return record
    index = card.class_index(name)
    if index is None:
        raise PlanError(f"label = {name!r} is not a class of {card.name}, which has changed since the job was accepted")
    return replace(record, request=replace(record.request, label=index))


def _trajectories(started: StartedAttempt, model: ServedModel) -> list[Trajectory]:
    """The unfinished images of a job, where they were saved; at their x_T when the resume point cannot be used."""
    record, resume_point = started.record, started.resume_point
    try:
        saved: Mapping[int, ResumePoint] = from_bytes(resume_point) if resume_point is not None else {}
        return trajectories(record, model, saved)
    except ResumeError as error:
        fields = {"job": record.id, "request_id": record.request_id, "reason": str(error)}
        log.warning("resume point unusable", extra=fields)
        return trajectories(record, model)
