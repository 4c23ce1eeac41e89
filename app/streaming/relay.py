"""Events from Redis to any number of listeners, through one reader per process.

A listener first gets what is stored, then what the reader brings. A slow one is never waited
for: it gets the rest from the store, in its own time, and when it is far behind without old
frames and progress; the end of the job comes in any case. Jobs whose listeners are all behind
are not read at all. Who waits for the end alone is told of it from one stream of all ends, so that nobody reads
the progress of a job for him. The reader is a thread with a plain blocking client, so that no cancelled
coroutine can leave a connection one reply behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import redis
from starlette.concurrency import run_in_threadpool

from denoised.app.http.job_object import job_object
from denoised.jobs.deadline import REDIS_DEADLINE
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.record import TERMINAL
from denoised.jobs.redis_keys import ENDS
from denoised.jobs.redis_keys import events as events_key
from denoised.jobs.redis_keys import wake as wake_key
from denoised.jobs.store import Outcome, Store

log = logging.getLogger("denoised.api")

Event = dict[str, Any]
Entry = tuple[bytes, Mapping[bytes, bytes]]
BUFFERED = (
    64  # events that wait here for a listener; when it is further behind it gets them from the store, in its time
)
BEHIND = 512  # beyond which it loses old frames and progress
KEPT = 64  # of the newest events, with frames and progress
PAGE = 500
BLOCK_MS = 2000
LOOK_SECONDS = 5.0  # between two looks at a job whose end is waited for, should the word of it have been lost
JOIN_SECONDS = 0.5
ENDED = 1000  # of the newest ends that are remembered for who comes to wait for them just then
DROPPABLE = ("frame", "progress")


class Closing(Exception):
    """The server is shutting down; the stream ends unfinished."""


class Listener:
    """One listener's place in one job's events. Used in the event loop only.

    behind: it could not keep up, and has to be told again from the store.
    """

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.behind = False
        self._buffer: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._closing = False

    def offer(self, event: Event) -> None:
        """Keep an event for this listener; when there are too many, none."""
        if self.behind:
            return
        if len(self._buffer) >= BUFFERED:
            self.behind = True
            self._buffer.clear()
        else:
            self._buffer.append(event)
        self._ready.set()

    def catch_up(self) -> None:
        """From now on events are kept again."""
        self._buffer.clear()
        self.behind = False

    def close(self) -> None:
        self._closing = True
        self._ready.set()

    async def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None when `timeout` seconds were quiet.

        Raises:
            Closing: on shutdown.
        """
        if not self._buffer:
            if self._closing:
                raise Closing
            self._ready.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._ready.wait()
            except TimeoutError:
                return None
            if not self._buffer:
                raise Closing
        return self._buffer.popleft()


class Relay:
    """One reader thread; listeners come and go in the event loop."""

    def __init__(self, store: Store, reader: redis.Redis) -> None:
        self._store = store
        self._reader = reader
        self._wake_key = wake_key(uuid.uuid4().hex)
        self._listeners: dict[str, set[Listener]] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}  # for the ends of jobs
        self._ended: deque[str] = deque(maxlen=ENDED)
        self._cursors: dict[str, str] = {}  # job id → id of the last entry read
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        """Begin to read; call it in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close_listeners(self) -> None:
        """End every stream (shutdown); call it in the event loop."""
        self._closing = True
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.close()
        self._rouse(list(self._waiting))

    async def stop(self) -> None:
        """End the reader."""
        self.close_listeners()
        self._stopped.set()
        with contextlib.suppress(StoreUnavailable):
            await run_in_threadpool(self._wake)
        await run_in_threadpool(self._thread.join, JOIN_SECONDS)  # it must not speak to a loop that is closed

    @property
    def listeners(self) -> int:
        """Streams that are open here."""
        return sum(len(listeners) for listeners in self._listeners.values())

    @property
    def followed(self) -> int:
        """Jobs whose events are read now."""
        with self._lock:
            return len(self._cursors)

    async def events(self, job_id: str, after: int = 0, quiet: float | None = None) -> AsyncIterator[Event | None]:
        """A job's events with seq > `after`, until its end; None after each `quiet` seconds of silence.

        Raises:
            Closing: on shutdown.
        """
        async with self._listening(job_id) as listener:
            seq, spare = after, 0
            while True:
                listener.catch_up()
                last = await self._follow(job_id)
                async for event in self._stored(job_id, min(seq, last - 1), last, spare):  # the last one in any case
                    if event["seq"] > seq:
                        seq = event["seq"]
                        yield await self._complete(event)
                    if event["type"] in TERMINAL:
                        return
                if seq < last:
                    return  # the job has expired meanwhile
                spare = BEHIND
                while not listener.behind:
                    live = await listener.next(quiet)
                    if live is None:
                        yield None
                    elif live["seq"] > seq:
                        seq = live["seq"]
                        yield await self._complete(live)
                    if live is not None and live["type"] in TERMINAL:
                        return

    async def _stored(self, job_id: str, seq: int, last: int, spare: int) -> AsyncIterator[Event]:
        """What the store has after `seq` up to `last`; when that is more than `spare` (0 = no limit), of frames and
        progress the newest only."""
        spared = last - KEPT if 0 < spare < last - seq else 0
        while seq < last:
            events = await run_in_threadpool(self._store.events.read, job_id, seq, PAGE)
            if not events:
                return
            for event in events:
                seq = event["seq"]
                if seq > spared or event["type"] not in DROPPABLE:
                    yield event

    async def wait_for_end(self, job_id: str, timeout: float, pictures: int = 0) -> Outcome | None:
        """A job as soon as it is over, or as it stands after `timeout` seconds, with so many of its pictures; None when
        it is gone. For a job that was not over a moment ago: of what ended before that nobody would tell.

        Raises:
            Closing: on shutdown.
        """
        deadline = time.monotonic() + timeout
        with self._waiting_for(job_id) as ended:
            while not self._closing:
                left = max(0.0, deadline - time.monotonic())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, LOOK_SECONDS)):
                        await ended.wait()
                if self._closing:
                    break
                ended.clear()
                outcome = await run_in_threadpool(self._store.outcome, job_id, pictures)
                if outcome is None or outcome.record.terminal or time.monotonic() >= deadline:
                    return outcome
        raise Closing

    @contextlib.contextmanager
    def _waiting_for(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when a job may have ended."""
        REDIS_DEADLINE.set(None)  # who waits has time
        ended = asyncio.Event()
        if job_id in self._ended:
            ended.set()
        self._waiting.setdefault(job_id, set()).add(ended)
        try:
            yield ended
        finally:
            self._waiting[job_id].discard(ended)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    @contextlib.asynccontextmanager
    async def _listening(self, job_id: str) -> AsyncIterator[Listener]:
        if self._closing:
            raise Closing
        REDIS_DEADLINE.set(None)  # who listens has time
        listener = Listener(job_id)
        self._listeners.setdefault(job_id, set()).add(listener)
        try:
            yield listener
        finally:
            self._listeners[job_id].discard(listener)
            if not self._listeners[job_id]:
                del self._listeners[job_id]
                with self._lock:
                    self._cursors.pop(job_id, None)

    async def _follow(self, job_id: str) -> int:
        """Have the reader bring what comes after the newest stored event; returns its seq."""
        last = await run_in_threadpool(self._store.events.watch, job_id)
        with self._lock:
            fresh = job_id not in self._cursors
            self._cursors.setdefault(job_id, f"{last}-0")
        if fresh:
            await run_in_threadpool(self._wake)
        return last

    async def _complete(self, event: Event) -> Event:
        """Terminal events carry the job as it ended."""
        if event["type"] in TERMINAL:
            record = await run_in_threadpool(self._store.job, event["job"])
            return {**event, "result": job_object(record) if record is not None else None}
        return event

    # The reader's thread

    def _run(self) -> None:
        wake_cursor, ends_cursor, away = "0-0", "0-0", False
        while not self._stopped.is_set():
            with self._lock:
                followed = dict(self._cursors)
            streams = {self._wake_key: wake_cursor, ENDS: ends_cursor}
            streams |= {events_key(job): cursor for job, cursor in followed.items()}
            jobs = {events_key(job).encode(): job for job in followed}
            try:
                reply = self._reader.xread(streams, count=PAGE, block=BLOCK_MS)  # type: ignore[arg-type]
            except redis.exceptions.RedisError as error:
                if not away:
                    log.warning("events wait: %s", error)
                away = True
                self._stopped.wait(0.5)
                continue
            away = False
            for key, entries in cast("list[tuple[bytes, list[Entry]]]", reply or []):
                if key.decode() == self._wake_key:
                    wake_cursor = entries[-1][0].decode()
                elif key.decode() == ENDS:
                    ends_cursor = entries[-1][0].decode()
                    self._in_loop(self._tell_ended, [fields[b"job"].decode() for _, fields in entries])
                else:
                    self._dispatch(jobs[key], entries)

    def _dispatch(self, job_id: str, entries: list[Entry]) -> None:
        with self._lock:
            if job_id not in self._cursors:
                return
            self._cursors[job_id] = entries[-1][0].decode()
        events = self._store.events.decode(job_id, entries)
        self._in_loop(self._offer, job_id, events)

    def _in_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(call, *arguments)

    # In the event loop

    def _tell_ended(self, job_ids: Sequence[str]) -> None:
        self._ended.extend(job_ids)
        self._rouse(job_ids)

    def _rouse(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            for ended in self._waiting.get(job_id, ()):
                ended.set()

    def _offer(self, job_id: str, events: list[Event]) -> None:
        listeners = self._listeners.get(job_id, set())
        for listener in listeners:
            for event in events:
                listener.offer(event)
        if all(listener.behind for listener in listeners):
            with self._lock:
                self._cursors.pop(job_id, None)  # until one of them moves

    def _wake(self) -> None:
        """Have the reader look at its list of jobs again."""
        with self._store.reachable(), self._store.client.pipeline() as pipe:
            pipe.xadd(self._wake_key, {"w": b"1"}, maxlen=1)
            pipe.expire(self._wake_key, 3600)
            pipe.execute()
