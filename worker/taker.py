"""Jobs off their queues, in a thread of its own, so that no turn of the engine waits for Redis.

The engine says what there is room for; what was taken by its next turn takes part in it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from worker.job import JobRecord
from worker.leases import Hold
from worker.patience import REDIS_ERRORS
from worker.store import Store
from worker.writes import Write

log = logging.getLogger("denoised.worker")

ASK_SECONDS = 0.25  # how long queues that were empty are not asked again, unless somebody wakes us
AWAY_SECONDS = 1.0  # how long Redis is not asked after it was away


@dataclass(frozen=True)
class Arrival:
    """A job whose attempt has begun, and where an earlier one was saved."""

    hold: Hold
    record: JobRecord
    resume_point: bytes | None


@dataclass(frozen=True)
class Room:
    """What of a model may come: so many images, or, when there is no lane for any, one job to wait for one."""

    images: int
    one_more: bool


class Taker(threading.Thread):
    """Takes jobs while there is room for them.

    numerics: of each model that is served; take(model): the next job of that model's queue, None when it is empty;
    name: the worker's; arrived(): is called, in this thread, for every job; stopping: nothing is taken once it is set.
    """

    def __init__(
        self,
        store: Store,
        numerics: Mapping[str, str],
        take: Callable[[str], Hold | None],
        name: str,
        arrived: Callable[[], None],
        stopping: threading.Event,
    ) -> None:
        super().__init__(name="taker", daemon=True)
        self._store = store
        self._numerics = numerics
        self._take = take
        self._worker = name
        self._arrived = arrived
        self._stopping = stopping
        self._changed = threading.Condition()  # guards all that follows but the last two
        self._rooms: Mapping[str, Room] = {}
        self._arrivals: deque[Arrival] = deque()
        self._more = dict.fromkeys(numerics, True)  # whether a queue may hold jobs
        self._waited_for: set[str] = set()  # models of which one job has come since to wait for a lane
        self._ask_at = 0.0
        self._broken: Exception | None = None
        self._taken: Hold | None = None  # off its queue, but not begun: Redis went away in between

    def wake(self) -> None:
        """There may be new work."""
        with self._changed:
            self._more = dict.fromkeys(self._more, True)
            self._changed.notify()

    def arrivals(self) -> list[Arrival]:
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

    def offer(self, rooms: Mapping[str, Room]) -> None:
        """Say what there is room for, until the next time."""
        with self._changed:
            self._rooms = rooms
            self._waited_for.clear()
            if self._due():
                self._changed.notify()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                with self._changed:
                    if not self._due():
                        self._changed.wait(ASK_SECONDS)
                        continue
                self._round()
        except Exception as error:
            log.exception("no jobs can be taken any more")
            with self._changed:
                self._broken = error
            self._arrived()

    def _due(self) -> bool:
        """Whether a job is wanted of a queue that may hold one."""
        ask_anyway = time.monotonic() >= self._ask_at
        return any(self._wanted(model) and (ask_anyway or more) for model, more in self._more.items())

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
            for model in self._numerics:
                self._fill(model)
            self._ask_at = time.monotonic() + ASK_SECONDS
        except REDIS_ERRORS as error:
            log.warning("no new jobs: %s", error)  # what runs goes on meanwhile
            self._stopping.wait(AWAY_SECONDS)

    def _fill(self, model: str) -> None:
        while not self._stopping.is_set():
            with self._changed:
                if not self._wanted(model):
                    return
                self._more[model] = False  # unless we are woken from here on
            hold = self._take(model)
            if hold is None:
                return
            self._begin(hold)
            with self._changed:
                self._more[model] = True

    def _begin(self, hold: Hold) -> None:
        """Begin an attempt at a job, where another was saved if there was one."""
        self._taken = hold  # until all of it is known: nothing of what follows is lost when Redis goes away
        attempt = self._store.start(hold.job, self._worker, self._numerics[hold.model], hold.execution)
        record = self._record(hold.job) if attempt else None
        if record is None:
            hold.forget()
        else:
            arrival = Arrival(hold, replace(record, attempt=attempt), self._store.resume_point(hold.job))
            with self._changed:
                if self._rooms.get(hold.model, Room(0, False)).images <= 0:
                    self._waited_for.add(hold.model)
                self._arrivals.append(arrival)
            self._arrived()
        self._taken = None

    def _record(self, job_id: str) -> JobRecord | None:
        """The job; None when it is gone, or not to be read (a newer front end's, say): that ends it."""
        try:
            return self._store.job(job_id)
        except (KeyError, TypeError, ValueError) as error:
            write = Write(job_id)
            write.end("failed", {"code": "unservable", "message": f"this worker cannot read the request: {error}"})
            self._store.write(write)
            return None
