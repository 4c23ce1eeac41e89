"""The events of jobs: one Redis stream per job, entry id = "{seq}-0".

Events are appended by the scripts that change a job (`jobs.store.scripts.job_scripts`), which number them without gaps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from denoised.jobs.errors import RecordError
from denoised.jobs.format import UnreadableLog, parse_json
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.event_scripts import READ_EVENTS, WATCH
from denoised.jobs.store.store_connection import StoreConnection

MAX_EVENT_BYTES = 64 << 20  # a frame in base64 is the largest event

StreamEntry = tuple[bytes, Mapping[bytes, bytes]]

PAGE_BYTES, PAGE_EVENTS = 64 * 1024, 500


@dataclass(frozen=True)
class EventPage:
    """Some consecutive events. last: seq of the last entry read, which may be unreadable; None = there are no more."""

    events: Sequence[dict[str, Any]]
    last: int | None


class EventLog:
    """Reads events. Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection
        self._watch = connection.client.register_script(WATCH)
        self._read_events = connection.client.register_script(READ_EVENTS)
        self._unreadable = UnreadableLog()

    def page(self, job_id: str, after: int, size: int = PAGE_BYTES) -> EventPage:
        """The stored events with seq > `after`, oldest first, until they exceed `size` bytes."""
        with self._stream(job_id):
            reply = self._read_events(keys=[keys.events(job_id)], args=[after, size, PAGE_EVENTS])
            return self._page(job_id, reply)
        return EventPage([], None)

    def _page(self, job_id: str, reply: Any) -> EventPage:
        entries = [(entry_id, dict(zip(values[::2], values[1::2], strict=True))) for entry_id, values in reply]
        return EventPage(self.decode(job_id, entries), _seq(entries[-1][0]) if entries else None)

    def missing(self, job_ids: Sequence[str]) -> list[str]:
        """Those of the jobs that are no longer stored."""
        with self._connection.reachable(), self._connection.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.exists(keys.job(job_id))
            return [job_id for job_id, exists in zip(job_ids, pipe.execute(), strict=True) if not exists]

    def read(self, job_id: str, after: int = 0, count: int = 500) -> list[dict[str, Any]]:
        """At most `count` stored events with seq > `after`, oldest first."""
        with self._stream(job_id):
            reply = self._connection.client.xrange(keys.events(job_id), min=f"{after + 1}-0", count=count)
            return self.decode(job_id, cast("list[StreamEntry]", reply))
        return []

    def newest(self, job_id: str, count: int) -> list[dict[str, Any]]:
        """The last `count` stored events, newest first."""
        with self._stream(job_id):
            reply = self._connection.client.xrevrange(keys.events(job_id), count=count)
            return self.decode(job_id, cast("list[StreamEntry]", reply))
        return []

    def decode(self, job_id: str, entries: Sequence[StreamEntry]) -> list[dict[str, Any]]:
        """Stream entries as the events of the HTTP contract (terminal ones lack `result`).

        An entry that cannot be decoded is skipped and logged once.
        """
        events = []
        for entry_id, fields in entries:
            try:
                events.append(_decode(job_id, entry_id, fields))
            except RecordError as error:
                self._unreadable.skip("event", f"{job_id}/{entry_id.decode()}", error)
        return events

    def watch(self, job_id: str) -> int:
        """Have the job's worker write each event as soon as it happens, since a client follows them.

        Returns the seq of the newest event, 0 when there is no such job.
        """
        with self._connection.reachable():
            return int(self._watch(keys=[keys.job(job_id)]))

    def last_seq(self, job_id: str) -> int:
        """The seq of the newest event, 0 when there are no events."""
        with self._stream(job_id):
            entries = cast("list[StreamEntry]", self._connection.client.xrevrange(keys.events(job_id), count=1))
            return _seq(entries[0][0]) if entries else 0
        return 0

    @contextlib.contextmanager
    def _stream(self, job_id: str) -> Iterator[None]:
        """Wrap a read of a job's events: a key that is not a stream holds none, until the job's next event."""
        try:
            with self._connection.reachable():
                yield
        except RecordError as error:
            self._unreadable.skip("events", job_id, error)


def _decode(job_id: str, entry_id: bytes, fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    try:
        event = parse_json(fields[b"e"], MAX_EVENT_BYTES)
        if not isinstance(event["type"], str):
            raise TypeError(f"type is {event['type']!r:.60}")
        head = {"seq": _seq(entry_id), "type": event.pop("type"), "job": job_id, "attempt": int(fields[b"a"])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"the event cannot be read: {type(error).__name__}: {error}") from error
    return {**head, **event}


def _seq(entry_id: bytes) -> int:
    return int(entry_id.split(b"-")[0])
