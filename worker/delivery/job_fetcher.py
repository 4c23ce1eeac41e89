"""Jobs off their queues, in a thread of its own, so that no turn of the engine waits for Redis or for new noise.

The engine says what there is room for; what was taken by its next turn takes part in it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from denoised.jobs.deadline import REDIS_ERRORS
from denoised.jobs.errors import RecordError
from denoised.jobs.record import JobRecord
from denoised.jobs.store import StartedAttempt, Store
from denoised.jobs.update import JobUpdate
from denoised.model.errors import ModelError
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.leases import Delivery
from denoised.worker.engine.resume import ResumePoint, from_bytes
from denoised.worker.engine.trajectory import Trajectory, trajectories
from denoised.worker.errors import ResumeError

log = logging.getLogger("denoised.worker")

ASK_SECONDS = 0.25  # how long a queue that was empty is not asked again, unless somebody wakes us
AWAY_SECONDS = 1.0  # how long Redis is not asked after it was away


@dataclass(frozen=True)
class FetchedJob:
    """A job whose attempt has begun, and its images that are to be made. unservable: why there can be none."""

    hold: Delivery
    record: JobRecord
    trajectories: Sequence[Trajectory] = ()
    unservable: str | None = None

    @classmethod
    def of(cls, hold: Delivery, begun: StartedAttempt, model: ServedModel) -> FetchedJob:
        try:
            return cls(hold, begun.record, _trajectories(begun, model))
        except ModelError as error:
            return cls(hold, begun.record, unservable=str(error))


@dataclass(frozen=True)
class Capacity:
    """What of a model may come: so many images, or, when there is no lane for any, one job to wait for one."""

    images: int
    one_more: bool


class JobFetcher(threading.Thread):
    """Takes jobs while there is room for them.

    models: those that are served, by name; take(model): the next job of that model's queue, None when it is empty;
    name: the worker's; arrived(): is called, in this thread, for every job; stopping: nothing is taken once it is set.
    """

    def __init__(
        self,
        store: Store,
        models: Mapping[str, ServedModel],
        take: Callable[[str], Delivery | None],
        name: str,
        arrived: Callable[[], None],
        stopping: threading.Event,
    ) -> None:
        super().__init__(name="taker", daemon=True)
        self._store = store
        self._models = models
        self._take = take
        self._worker = name
        self._arrived = arrived
        self._stopping = stopping
        self._changed = threading.Condition()  # guards all that follows but the last two
        self._rooms: Mapping[str, Capacity] = {}
        self._arrivals: deque[FetchedJob] = deque()
        self._more = dict.fromkeys(models, True)  # whether a queue may hold jobs
        self._ask_at = dict.fromkeys(models, 0.0)  # when it is asked all the same
        self._waited_for: set[str] = set()  # models of which one job has come since to wait for a lane
        self._broken: Exception | None = None
        self._taken: Delivery | None = None  # off its queue, but not begun: Redis went away in between

    def wake(self, model: str | None = None) -> None:
        """There may be new work, for one model or for any."""
        with self._changed:
            self._more |= dict.fromkeys(self._more if model is None else [model], True)
            self._changed.notify()

    def arrivals(self) -> list[FetchedJob]:
        """What has come since, in its order. Nothing more comes until `offer`.

        Raises:
            Exception: whatever ended the thread.
        """
        with self._changed:
            if self._broken is not None:
                raise self._broken
            come = list(self._arrivals)
            self._arrivals.clear()
            self._rooms = {}
        return come

    def offer(self, rooms: Mapping[str, Capacity]) -> None:
        """Say what there is room for, until the next time."""
        with self._changed:
            self._rooms = rooms
            self._waited_for.clear()
            if any(map(self._due, self._models)):
                self._changed.notify()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                with self._changed:
                    if not any(map(self._due, self._models)):
                        self._changed.wait(ASK_SECONDS)
                        continue
                self._round()
        except Exception as error:
            log.exception("no jobs can be taken any more")
            with self._changed:
                self._broken = error
            self._arrived()

    def _due(self, model: str) -> bool:
        """Whether a job is wanted of a queue that may hold one."""
        return self._wanted(model) and (self._more[model] or time.monotonic() >= self._ask_at[model])

    def _wanted(self, model: str) -> bool:
        room = self._rooms.get(model)
        if room is None:
            return False
        coming = Counter[str]()
        for arrival in self._arrivals:
            coming[arrival.record.request.model] += arrival.record.request.n
        return room.images > coming[model] or (room.one_more and not coming[model] and model not in self._waited_for)

    def _round(self) -> None:
        """Take what there is room for."""
        try:
            if self._taken is not None:
                self._begin(self._taken)
            for model in self._models:
                self._fill(model)
        except REDIS_ERRORS as error:
            log.warning("no new jobs: %s", error)  # what runs goes on meanwhile
            self._stopping.wait(AWAY_SECONDS)

    def _fill(self, model: str) -> None:
        while not self._stopping.is_set():
            with self._changed:
                if not self._due(model):
                    return
                self._more[model] = False  # unless we are woken from here on
                self._ask_at[model] = time.monotonic() + ASK_SECONDS
            hold = self._take(model)
            if hold is None:
                return
            if hold.more:
                with self._changed:
                    self._more[model] = True
            self._begin(hold)

    def _begin(self, hold: Delivery) -> None:
        """Begin an attempt at a job, where another was saved if there was one."""
        self._taken = hold  # until all of it is known: nothing of what follows is lost when Redis goes away
        begun = self._begun(hold)
        if begun is None:
            hold.forget()
        else:
            arrival = FetchedJob.of(hold, begun, self._models[hold.model])
            with self._changed:
                if self._rooms.get(hold.model, Capacity(0, False)).images <= 0:
                    self._waited_for.add(hold.model)
                self._arrivals.append(arrival)
            self._arrived()
        self._taken = None

    def _begun(self, hold: Delivery) -> StartedAttempt | None:
        """None when the job is over, or not to be read (a newer front end's, say): that ends it."""
        try:
            return self._store.begin(hold.job, self._worker, self._models[hold.model].card.numerics, hold.execution)
        except RecordError as error:
            write = JobUpdate(hold.job)
            write.end("failed", {"code": "unservable", "message": str(error)})
            self._store.write(write)
            return None


def _trajectories(begun: StartedAttempt, model: ServedModel) -> list[Trajectory]:
    """Those of a job, where they were saved; from their x_T when that cannot be used."""
    record, resume_point = begun.record, begun.resume_point
    try:
        saved: Mapping[int, ResumePoint] = from_bytes(resume_point) if resume_point is not None else {}
        return trajectories(record, model, saved)
    except ResumeError as error:
        facts = {"job": record.id, "request_id": record.request_id, "reason": str(error)}
        log.warning("job begins anew", extra=facts)
        return trajectories(record, model)
