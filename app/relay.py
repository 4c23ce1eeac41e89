"""Events from Redis to any number of listeners, through one reader per process.

A listener first gets what is stored, then what the reader brings. A slow one is never waited
for: when too much piles up for it, its oldest frames go, then its older progress; the rest,
the end of the job above all, stays. The reader is a thread with a plain blocking client, so
no cancelled coroutine can leave a connection one reply behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import redis
from starlette.concurrency import run_in_threadpool

from worker.errors import StoreUnavailable
from worker.job import TERMINAL, JobRecord, job_object
from worker.store import Store, event_from_entry, events_key, reachable

log = logging.getLogger("denoised.api")

Event = dict[str, Any]
Entry = tuple[bytes, Mapping[bytes, bytes]]
BUFFERED = 512  # events kept for a listener that does not keep up
KEPT = (
    64  # of its frames, then of its progress, when there are too many; all at once, since one by one costs a scan each
)
PAGE = 500
BLOCK_MS = 2000
DROPPABLE = ("frame", "progress")


class Closing(Exception):
    """The server is shutting down; the stream ends unfinished."""


class Listener:
    """One listener's place in one job's events. Used in the event loop only."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self._buffer: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._closing = False

    def offer(self, event: Event) -> None:
        """Keep an event for this listener, at the price of older ones it can do without."""
        if len(self._buffer) >= BUFFERED:
            self._thin_out()
        self._buffer.append(event)
        self._ready.set()

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

    def _thin_out(self) -> None:
        """Keep the newest frames only; where that is not enough, the newest progress only. The rest stays."""
        for kind in DROPPABLE:
            if len(self._buffer) + KEPT > BUFFERED:
                self._keep_newest(kind)

    def _keep_newest(self, kind: str) -> None:
        spare = sum(event["type"] == kind for event in self._buffer) - KEPT
        kept: deque[Event] = deque()
        for event in self._buffer:
            if event["type"] == kind and spare > 0:
                spare -= 1
            else:
                kept.append(event)
        self._buffer = kept


class Relay:
    """One reader thread; listeners come and go in the event loop."""

    def __init__(self, store: Store, reader: redis.Redis) -> None:
        self._store = store
        self._reader = reader
        self._wake_key = f"denoised:wake:{uuid.uuid4().hex}"
        self._listeners: dict[str, set[Listener]] = {}
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

    async def stop(self) -> None:
        """End the reader."""
        self.close_listeners()
        self._stopped.set()
        with contextlib.suppress(StoreUnavailable):
            await run_in_threadpool(self._wake)

    @property
    def listeners(self) -> int:
        return sum(len(listeners) for listeners in self._listeners.values())

    async def events(self, job_id: str, after: int = 0, quiet: float | None = None) -> AsyncIterator[Event | None]:
        """A job's events with seq > `after`, until its end; None after each `quiet` seconds of silence.

        Raises:
            Closing: on shutdown.
        """
        async with self._listening(job_id) as listener:
            last = await self._follow(job_id)
            seq = min(after, last - 1)  # the last one in any case: it may be the end
            while seq < last:
                stored = await run_in_threadpool(self._store.events, job_id, seq, PAGE)
                if not stored:
                    return  # the job has expired meanwhile
                for event in stored:
                    seq = event["seq"]
                    if seq > after:
                        yield await self._complete(event)
                    if event["type"] in TERMINAL:
                        return
            while True:
                live = await listener.next(quiet)
                if live is None:
                    yield None
                elif live["seq"] > seq:
                    seq = live["seq"]
                    if seq > after:
                        yield await self._complete(live)
                    if live["type"] in TERMINAL:
                        return

    async def wait_for_end(self, job_id: str, timeout: float) -> JobRecord | None:
        """The record as soon as the job is over, or as it stands after `timeout` seconds; None when gone."""
        deadline = time.monotonic() + timeout
        async with self._listening(job_id) as listener:
            await self._follow(job_id)
            record = await run_in_threadpool(self._store.job, job_id)
            while record is not None and not record.terminal and (left := deadline - time.monotonic()) > 0:
                event = await listener.next(left)
                if event is None or event["type"] in TERMINAL:
                    record = await run_in_threadpool(self._store.job, job_id)
            return record

    @contextlib.asynccontextmanager
    async def _listening(self, job_id: str) -> AsyncIterator[Listener]:
        if self._closing:
            raise Closing
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
        last = await run_in_threadpool(self._store.last_seq, job_id)
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
        wake_cursor, away = "0-0", False
        while not self._stopped.is_set():
            with self._lock:
                followed = dict(self._cursors)
            streams = {self._wake_key: wake_cursor, **{events_key(job): cursor for job, cursor in followed.items()}}
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
                else:
                    self._dispatch(jobs[key], entries)

    def _dispatch(self, job_id: str, entries: list[Entry]) -> None:
        with self._lock:
            if job_id not in self._cursors:
                return
            self._cursors[job_id] = entries[-1][0].decode()
        events = [event_from_entry(job_id, entry_id, fields) for entry_id, fields in entries]
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._offer, job_id, events)

    def _offer(self, job_id: str, events: list[Event]) -> None:
        for listener in self._listeners.get(job_id, ()):
            for event in events:
                listener.offer(event)

    def _wake(self) -> None:
        """Have the reader look at its list of jobs again."""
        with reachable(), self._store.client.pipeline() as pipe:
            pipe.xadd(self._wake_key, {"w": b"1"}, maxlen=1)
            pipe.expire(self._wake_key, 3600)
            pipe.execute()
