"""Fetches jobs from their queues in a thread of its own, so that the engine waits neither for Redis nor for noise.

The engine says what it has capacity for; jobs fetched by its next turn take part in that turn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from denoised.jobs.errors import RecordError, StoreUnavailable
from denoised.jobs.store.store import Store
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.begun_jobs import (
    BegunJob,
    FetchedJob,
    adapt_to_model,
    make_images,
    prepare_prompts,
    resume_limit,
)
from denoised.worker.delivery.capacity import DEFER_SECONDS, POLL_SECONDS, Capacity, Take, poll_seconds
from denoised.worker.delivery.leases import Delivery
from denoised.worker.delivery.memory_declines import PAUSE_SECONDS, MemoryDeclines
from denoised.worker.delivery.pictures.stored_pictures import read_stored_pictures
from denoised.worker.delivery.request_check import check_request
from denoised.worker.delivery.unstarted_jobs import end_unstarted, give_back
from denoised.worker.device_health import DeviceHealth
from denoised.worker.error_kinds import is_out_of_memory

log = logging.getLogger("denoised.worker")

MAX_TOGETHER = 8  # jobs whose prompts are encoded in one evaluation
RETRY_SECONDS = 1.0  # between two tries while Redis does not answer


class JobFetcher(threading.Thread):
    """Fetches jobs while there is capacity.

    models: the served models by name.
    take: takes a job off the queue of a model.
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
        take: Take,
        name: str,
        notify: Callable[[], None],
        stopping: threading.Event,
        device: DeviceHealth | None = None,
        declines: MemoryDeclines | None = None,
    ) -> None:
        """device: by default one that is always sound; declines: the jobs that are left to other workers."""
        super().__init__(name="job fetcher", daemon=True)
        self._store = store
        self._models = models
        self._take = take
        self._worker = name
        self._notify = notify
        self._stopping = stopping
        self._device = device or DeviceHealth()
        self._declines = declines
        self.short_of_memory = False
        self._changed = threading.Condition()  # guards the attributes below, except the last
        self._capacity: Mapping[str, Capacity] = {}
        self._begun: deque[BegunJob] = deque()
        self._fetched: deque[FetchedJob] = deque()
        self._may_hold_jobs = defaultdict[str, bool](lambda: True)  # by model, as the next two
        self._poll_at = defaultdict[str, float](float)  # when a queue that was empty is asked again
        self._paused_until = defaultdict[str, float](float)  # after a job was put back for other workers
        self._one_more_used: set[str] = set()  # models whose `one_more` has been fetched
        self._failure: Exception | None = None
        self._unstarted: Delivery | None = None  # taken off its queue, not started: Redis stopped answering
        self._taking: str | None = None  # the model whose queue is being asked

    def wake(self, model: str | None = None) -> None:
        """There may be new jobs, for one model or, without a name, for any."""
        with self._changed:
            for name in self._models if model is None else [model]:
                self._may_hold_jobs[name] = True
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

    def holds(self, model: str) -> bool:
        """Whether a job of a model may be here, or may come: there is capacity for it, or one is being fetched."""
        with self._changed:
            here = [self._unstarted, *(job.delivery for job in self._begun), *(job.delivery for job in self._fetched)]
            held = any(each is not None and each.model == model for each in here)
            return held or model in self._capacity or self._taking == model

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
                    if not self._begun and not any(map(self._is_due, self._models)):
                        self._changed.wait(self._idle_seconds())
                        continue
                self._fetch()
        except Exception as error:
            log.exception("fetching jobs has failed")
            with self._changed:
                self._failure = error
            self._notify()

    def _is_due(self, model: str) -> bool:
        """Whether there is capacity for a job of a queue that may hold one."""
        if not self._has_capacity(model) or time.monotonic() < self._paused_until[model]:
            return False
        return self._may_hold_jobs[model] or time.monotonic() >= self._poll_at[model]

    def _is_deferred(self, model: str) -> bool:
        capacity = self._capacity.get(model)
        return capacity is not None and capacity.deferred

    def _idle_seconds(self) -> float:
        """How long to wait for a change: until the next queue is asked again."""
        left = [self._poll_at[name] - time.monotonic() for name in self._models if self._has_capacity(name)]
        return min([POLL_SECONDS, *(each for each in left if each > 0)])

    def _has_capacity(self, model: str) -> bool:
        capacity = self._capacity.get(model)
        if capacity is None:
            return False
        images = Counter[str]()
        for started in [*(job.started for job in self._begun), *(job.started for job in self._fetched)]:
            images[started.record.request.model] += started.record.request.n
        one_more = capacity.one_more and not images[model] and model not in self._one_more_used
        return capacity.images > images[model] or one_more

    def _fetch(self) -> None:
        """Fetch jobs until the capacity is used or the queues are empty."""
        try:
            if self._unstarted is not None:
                self._start(self._unstarted)
            self._make_images()
            for model in sorted(self._models, key=self._is_deferred):  # those in the batch first
                self._fetch_from(model)
        except (StoreUnavailable, MemoryError) as error:
            # The batch continues.
            log.warning("fetching jobs waits", extra={"reason": f"{type(error).__name__}: {error}"})
            self._stopping.wait(RETRY_SECONDS)

    def _fetch_from(self, model: str) -> None:
        """Fetch jobs of a model; those that wait together have their prompts encoded together."""
        served = self._models.get(model)
        if served is None:
            return  # it has just been removed
        together = MAX_TOGETHER if served.card.prompts else 1
        try:
            while not self._stopping.is_set() and self._begin_next(model):
                if len(self._begun) >= together:
                    self._make_images()
        finally:
            self._make_images()

    def _begin_next(self, model: str) -> bool:
        """Take a model's next job and start an attempt at it. False if there is none, or no capacity."""
        try:
            return self._begin_if_due(model)
        finally:
            with self._changed:
                self._taking = None

    def _begin_if_due(self, model: str) -> bool:
        with self._changed:
            if not self._is_due(model):
                return False
            self._taking = model
            woken, capacity = self._may_hold_jobs[model], self._capacity[model]
            self._may_hold_jobs[model] = False  # unless `wake` is called from here on
            self._poll_at[model] = time.monotonic() + poll_seconds(capacity, woken=woken)
        delivery = self._take_from(model, capacity)
        if delivery is None:
            return False
        if self._declines is not None and self._declines.is_declined(delivery.job):
            delivery.requeue()
            with self._changed:
                self._may_hold_jobs[model] = True
                self._paused_until[model] = time.monotonic() + PAUSE_SECONDS
            return False
        if delivery.more:
            with self._changed:
                self._may_hold_jobs[model] = True
        self._start(delivery)
        return True

    def _take_from(self, model: str, capacity: Capacity) -> Delivery | None:
        """The next delivery; None also when the queue's key is damaged."""
        try:
            return self._take(model, DEFER_SECONDS if capacity.deferred else 0.0, sorted(capacity.passed_over))
        except RecordError as error:
            log.warning("queue unreadable", extra={"model": model, "reason": str(error)})
            return None

    def _start(self, delivery: Delivery) -> None:
        """Start an attempt at a job."""
        self._unstarted = delivery  # until it is started: nothing is lost when Redis stops answering in between
        started = self._start_attempt(delivery)
        if started is None:
            delivery.ack()
        elif isinstance(started, Exception):
            self._end_unstarted(delivery, started)
        else:
            with self._changed:
                if self._capacity.get(delivery.model, Capacity(0, False)).images <= 0:
                    self._one_more_used.add(delivery.model)
                self._begun.append(started)
        self._unstarted = None

    def _make_images(self) -> None:
        """Make the images of the jobs that have begun. One stays until it is fetched, or has been ended."""
        if len(self._begun) > 1:
            prepare_prompts(self._begun, self._models)
        while self._begun:
            job = self._begun[0]
            fetched = make_images(job, self._models[job.delivery.model])
            if isinstance(fetched, Exception):
                if self._device.is_sound_after(fetched):
                    self._end_unstarted(job.delivery, fetched)
                else:
                    give_back(self._store, job)
            with self._changed:
                self._begun.popleft()
                if isinstance(fetched, FetchedJob):
                    self._fetched.append(fetched)
            self._notify()

    def _start_attempt(self, delivery: Delivery) -> BegunJob | Exception | None:
        """None when the job is over; the error when this worker cannot start it, which concerns this job alone."""
        model = self._models[delivery.model]
        try:
            started = self._store.attempts.start(
                delivery.job, self._worker, model.card.numerics, delivery.execution, resume_limit(model)
            )
            if started is None:
                return None
            started = replace(started, record=adapt_to_model(started.record, model.card))
            check_request(started.record.request, model.card)
            return BegunJob(delivery, started, read_stored_pictures(self._store, started.record))
        except StoreUnavailable:
            raise
        except Exception as error:
            return error

    def _end_unstarted(self, delivery: Delivery, error: Exception) -> None:
        """Fail a job that could not be started, or requeue it if another worker may have the memory."""
        queued = end_unstarted(self._store, delivery, error)
        if is_out_of_memory(error):
            self.short_of_memory = queued
            with self._changed:
                self._capacity = {}
            self._notify()
        if queued:
            self._stopping.wait(RETRY_SECONDS)  # other workers take it first
