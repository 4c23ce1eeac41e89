"""The thread that reads the event streams of all followed jobs from Redis.

It is a thread with a blocking client, because a canceled coroutine could leave an unread reply in a connection.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import cast

import redis

from denoised.app.streaming.event_listener import Event
from denoised.jobs.errors import RecordError
from denoised.jobs.format import UnreadableLog
from denoised.jobs.redis.refusals import connection_problem
from denoised.jobs.store.event_log import StreamEntry
from denoised.jobs.store.redis_keys import ENDS
from denoised.jobs.store.redis_keys import events as events_key
from denoised.jobs.store.redis_keys import wake as wake_key
from denoised.jobs.store.store import Store

log = logging.getLogger("denoised.api")


PAGE_SIZE = 64  # entries of one stream that are read at once
BLOCK_MS = 2000
RETRY_SECONDS = 0.5  # after an error of Redis
EXCLUDED_SECONDS = 2.0  # between checks whether an unreadable key has been replaced
JOIN_SECONDS = 0.5
WAKE_KEY_SECONDS = 3600


class StreamReader:
    """Follows jobs and calls back with their new events. Thread-safe; the callbacks run in the reader's thread.

    on_events: receives a job id and its new events, in order.
    on_ends: receives the ids of jobs of any front end that have ended.
    """

    def __init__(
        self,
        store: Store,
        client: redis.Redis,
        on_events: Callable[[str, list[Event]], None],
        on_ends: Callable[[list[str]], None],
    ) -> None:
        self._store = store
        self._client = client
        self._on_events = on_events
        self._on_ends = on_ends
        self._wake_key = wake_key(uuid.uuid4().hex)  # an entry in this stream interrupts the blocking read
        self._wake_cursor = self._ends_cursor = "0-0"
        self._cursors: dict[str, str] = {}  # job id → id of the last entry read
        self._lock = threading.Lock()
        self._failing = False
        self._excluded: set[str] = set()  # keys
        self._checked_at = -math.inf  # when these were found (`time.monotonic`)
        self._unreadable = UnreadableLog()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end after its current read; `wake` shortens that."""
        self._stopped.set()

    def join(self) -> None:
        """Wait up to JOIN_SECONDS for the thread. Blocking."""
        self._thread.join(JOIN_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def followed(self) -> int:
        """The number of jobs whose events are read now."""
        with self._lock:
            return len(self._cursors)

    def follow(self, job_id: str, last_seq: int) -> bool:
        """Read the events of a job after `last_seq`; return whether that is new, so that `wake` is needed."""
        with self._lock:
            new = job_id not in self._cursors
            self._cursors.setdefault(job_id, f"{last_seq}-0")
        return new

    def unfollow(self, job_id: str) -> None:
        with self._lock:
            self._cursors.pop(job_id, None)

    def wake(self) -> None:
        """Let the thread read the streams of newly followed jobs now. Blocking.

        Raises:
            StoreUnavailable: when Redis does not answer in time.
        """
        with self._store.reachable(), self._store.client.pipeline() as pipe:
            pipe.xadd(self._wake_key, {"w": b"1"}, maxlen=1)
            pipe.expire(self._wake_key, WAKE_KEY_SECONDS)
            pipe.execute()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._read_or_wait()
        except BaseException:  # the process reports that it is not ready (`Relay.alive`)
            log.critical("the event reader has ended", exc_info=True)

    def _read_or_wait(self) -> None:
        """One read of all streams; after an error, a short wait."""
        try:
            try:
                if self._excluded and time.monotonic() - self._checked_at > EXCLUDED_SECONDS:
                    self._exclude_unreadable()
                self._read()
            except redis.exceptions.ResponseError as error:
                if "WRONGTYPE" not in str(error):
                    raise
                self._exclude_unreadable()
            self._failing = False
        except redis.exceptions.RedisError as error:
            if not self._failing:
                log.warning("events are delayed: %s", connection_problem(error))
            self._failing = True
            self._stopped.wait(RETRY_SECONDS)
        except Exception:
            if not self._stopped.is_set():  # on shutdown, the event loop may be closed
                log.exception("defect")
            self._stopped.wait(RETRY_SECONDS)

    def _exclude_unreadable(self) -> None:
        """Stop reading a key that is not a stream: it makes the read of all others fail."""
        with self._lock:
            names = [ENDS, *(events_key(job_id) for job_id in self._cursors)]
        self._excluded = {name for name in names if self._client.type(name) not in (b"stream", b"none")}
        self._checked_at = time.monotonic()
        for name in self._excluded:
            self._unreadable.skip("stream", name, RecordError("it is not a stream"))

    def _read(self) -> None:
        """One blocking read of all streams."""
        with self._lock:
            cursors = dict(self._cursors)
        streams = {self._wake_key: self._wake_cursor, ENDS: self._ends_cursor}
        streams |= {events_key(job_id): cursor for job_id, cursor in cursors.items()}
        job_ids = {events_key(job_id): job_id for job_id in cursors}
        readable = {name: cursor for name, cursor in streams.items() if name not in self._excluded}
        reply = self._client.xread(readable, count=PAGE_SIZE, block=BLOCK_MS)  # type: ignore[arg-type]
        for key, entries in cast("list[tuple[bytes, list[StreamEntry]]]", reply or []):
            last_id = entries[-1][0].decode()
            if (name := key.decode()) == self._wake_key:
                self._wake_cursor = last_id
            elif name == ENDS:
                self._ends_cursor = last_id
                self._on_ends([fields[b"job"].decode(errors="replace") for _, fields in entries if b"job" in fields])
            else:
                self._deliver(job_ids[name], entries, last_id)

    def _deliver(self, job_id: str, entries: Sequence[StreamEntry], last_id: str) -> None:
        with self._lock:
            if job_id not in self._cursors:
                return  # unfollowed during the read
            self._cursors[job_id] = last_id
        self._on_events(job_id, self._store.events.decode(job_id, entries))
