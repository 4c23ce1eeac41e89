"""Events from Redis to any number of listeners, through one reader thread per process.

A listener first gets the stored events, then live ones. Nothing waits for a slow listener: it reads what it missed from
the store at its own speed, and when it is far behind, old frames and progress are skipped for it; the event of the end
is never skipped. A job whose listeners are all behind is not read. Clients that wait only for the end of a job are
notified from one stream of all ends, so the job's other events are not read for them. Every few seconds, the streams of
jobs that are no longer stored are ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import redis
from starlette.concurrency import run_in_threadpool

from denoised.app.http.job_object import job_object
from denoised.app.http.live_keys import KEY
from denoised.app.streaming.end_notifications import EndNotifications
from denoised.app.streaming.event_listener import Event, EventListener, JobGone, KeyRevoked, ServerClosing
from denoised.app.streaming.stream_reader import StreamReader
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.record import TERMINAL
from denoised.jobs.redis.deadline import REDIS_DEADLINE
from denoised.jobs.store.store import Outcome, Store

log = logging.getLogger("denoised.api")

MAX_LAG = 512  # events; a listener that is further behind loses old frames and progress
KEPT_EVENTS = 64  # such a listener gets all of the newest ones
POLL_SECONDS = 5.0  # between checks of a job whose end is awaited, in case its notification is lost
GONE_CHECK_SECONDS = 3.0  # between checks whether the jobs of open streams are still stored
SKIPPABLE = ("frame", "progress")


class Relay:
    """The listeners of this process. Apart from `start` and the properties, used in the event loop only."""

    def __init__(self, store: Store, reader_client: redis.Redis, on_ends: Callable[[], None] = lambda: None) -> None:
        """on_ends: called in the event loop when jobs have ended, of any front end."""
        self._store = store
        self._reader = StreamReader(
            store,
            reader_client,
            on_events=partial(self._in_loop, self._offer),
            on_ends=partial(self._in_loop, self._job_ended),
        )
        self._listeners: dict[str, set[EventListener]] = {}
        self._ends = EndNotifications()
        self._on_ends = on_ends
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gone_check: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the reader; call it in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._reader.start()
        self._gone_check = asyncio.create_task(self._end_streams_of_gone_jobs())

    def close_listeners(self) -> None:
        """End every stream and every wait (shutdown)."""
        self._closing = True
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.close()
        self._ends.notify_all()

    def revoke(self, keys: frozenset[str]) -> None:
        """End the streams and the waits that came with these keys, given by their hashes."""
        for listeners in self._listeners.values():
            for listener in listeners:
                if listener.key in keys:
                    listener.key_is_revoked()
        self._ends.revoke(keys)

    async def stop(self) -> None:
        """End the reader; afterward it does not call into the loop, which may be closed."""
        self.close_listeners()
        if self._gone_check is not None:
            self._gone_check.cancel()
        self._reader.stop()
        with contextlib.suppress(StoreUnavailable):
            await run_in_threadpool(self._reader.wake)
        await run_in_threadpool(self._reader.join)

    @property
    def alive(self) -> bool:
        """Whether events still arrive: false before `start` and when the reader has ended."""
        return self._reader.alive and self._gone_check is not None and not self._gone_check.done()

    @property
    def listeners(self) -> int:
        """The number of open streams."""
        return sum(len(listeners) for listeners in self._listeners.values())

    @property
    def followed(self) -> int:
        """The number of jobs whose events are read now."""
        return self._reader.followed

    async def events(self, job_id: str, after: int = 0, quiet: float | None = None) -> AsyncIterator[Event | None]:
        """A job's events with seq > `after`, until its end; None after each `quiet` seconds without an event.

        Raises:
            ServerClosing: on shutdown.
            JobGone: when the job is no longer stored.
            KeyRevoked: when the API key of the current request is no longer accepted.
            StoreUnavailable: when Redis does not answer in time.
        """
        async with self._listening(job_id) as listener:
            seq, max_lag = after, None
            while True:
                listener.catch_up()
                last = await self._follow(job_id)
                # The last stored event is read in any case: it may be the end, and lie before `after`.
                async for event in self._stored(job_id, min(seq, last - 1), last, max_lag):
                    if event["seq"] > seq:
                        seq = event["seq"]
                        if (complete := await self._complete(event)) is not None:
                            yield complete
                    if event["type"] in TERMINAL:
                        return
                max_lag = MAX_LAG
                while not listener.behind:
                    live = await listener.next(quiet)
                    if live is None:
                        if not listener.behind:
                            yield None
                    elif live["seq"] > seq:
                        seq = live["seq"]
                        if (complete := await self._complete(live)) is not None:
                            yield complete
                    if live is not None and live["type"] in TERMINAL:
                        return

    async def wait_for_end(self, job_id: str, timeout: float, pictures: int = 0) -> Outcome | None:
        """The job with its first `pictures` pictures, when it ends or after `timeout` seconds; None when it is gone.

        For jobs that were not terminal a moment ago: earlier ends are not remembered.

        Raises:
            ServerClosing: on shutdown.
            KeyRevoked: when the API key of the current request is no longer accepted.
            StoreUnavailable: when Redis does not answer in time.
        """
        REDIS_DEADLINE.set(None)  # the deadline of the request does not limit a wait
        deadline = time.monotonic() + timeout
        with self._ends.subscribe(job_id, KEY.get()) as waiter:
            while not self._closing:
                remaining = max(0.0, deadline - time.monotonic())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(remaining, POLL_SECONDS)):
                        await waiter.woken.wait()
                if self._closing:
                    break
                if waiter.is_revoked:
                    raise KeyRevoked
                waiter.woken.clear()
                outcome = await run_in_threadpool(self._store.outcome, job_id, pictures)
                if outcome is None or outcome.record.terminal or time.monotonic() >= deadline:
                    return outcome
        raise ServerClosing

    @contextlib.asynccontextmanager
    async def _listening(self, job_id: str) -> AsyncIterator[EventListener]:
        """A listener that is registered while the context is open."""
        if self._closing:
            raise ServerClosing
        REDIS_DEADLINE.set(None)  # the deadline of the request does not limit a stream
        listener = EventListener(job_id, KEY.get())
        self._listeners.setdefault(job_id, set()).add(listener)
        try:
            yield listener
        finally:
            self._listeners[job_id].discard(listener)
            if not self._listeners[job_id]:
                del self._listeners[job_id]
                self._reader.unfollow(job_id)

    async def _follow(self, job_id: str) -> int:
        """Let the reader deliver what comes after the newest stored event; return the seq of that.

        Raises:
            JobGone: when the job is no longer stored.
        """
        last = await run_in_threadpool(self._store.events.watch, job_id)
        if not last:
            raise JobGone
        if self._reader.follow(job_id, last):
            with contextlib.suppress(StoreUnavailable):  # it may refuse writes now: the read returns by itself soon
                await run_in_threadpool(self._reader.wake)
        return last

    async def _stored(self, job_id: str, seq: int, last: int, max_lag: int | None) -> AsyncIterator[Event]:
        """The stored events after `seq` up to `last`; of more than `max_lag` events, only the newest frames and
        progress.

        Raises:
            JobGone: when the job is no longer stored.
        """
        keep_after = last - KEPT_EVENTS if max_lag is not None and last - seq > max_lag else 0
        while seq < last:
            page = await run_in_threadpool(self._store.events.page, job_id, seq)
            if page.last is None:
                raise JobGone  # it expired during the read
            for event in page.events:
                if event["seq"] > keep_after or event["type"] not in SKIPPABLE:
                    yield event
            seq = page.last

    async def _complete(self, event: Event) -> Event | None:
        """The event; a terminal one with the job as `result`, a frame with its picture, None if that is deleted."""
        if event["type"] == "frame" and "data" not in event:
            return await run_in_threadpool(self._store.results.with_frame, event)
        if event["type"] in TERMINAL:
            record = await run_in_threadpool(self._store.job, event["job"])
            return {**event, "result": job_object(record) if record is not None else None}
        return event

    async def _end_streams_of_gone_jobs(self) -> None:
        while True:
            await asyncio.sleep(GONE_CHECK_SECONDS)
            try:
                gone = await run_in_threadpool(self._store.events.missing, list(self._listeners))
            except StoreUnavailable:
                continue
            except Exception:
                log.exception("defect")
                continue
            for job_id in gone:
                for listener in self._listeners.get(job_id, ()):
                    listener.job_is_gone()

    def _in_loop(self, call: Callable[..., None], *args: Any) -> None:
        """Call from the reader's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(call, *args)

    def _offer(self, job_id: str, events: list[Event]) -> None:
        listeners = self._listeners.get(job_id, set())
        for listener in listeners:
            for event in events:
                listener.offer(event)
        if all(listener.behind for listener in listeners):
            self._reader.unfollow(job_id)  # until one of them has caught up

    def _job_ended(self, job_ids: list[str]) -> None:
        self._ends.notify(job_ids)
        self._on_ends()
