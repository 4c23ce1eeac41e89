"""Several jobs at once: records by id, progress of the active ones, and the list of a caller's jobs.

A record that cannot be read is skipped and logged once, so that it never hides the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from denoised.jobs.errors import RecordError, StoreUnavailable
from denoised.jobs.format import UnreadableLog
from denoised.jobs.record import JobRecord
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.record_reader import RecordReader
from denoised.jobs.store.store_connection import StoreConnection


@dataclass(frozen=True, order=True)
class JobCursor:
    """A position in the list of a caller's jobs; the id orders jobs created at the same moment."""

    created_at: float
    id: str


class JobListing:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection
        self._reader = RecordReader(connection)
        self._unreadable = UnreadableLog()

    def records(self, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """The readable records by id, in one round trip."""
        return self._readable(self._reader.read(job_ids))

    def active_evaluations(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Evaluations made so far for those of the jobs that are queued or running."""
        with self._connection.reachable(), self._connection.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(keys.job(job_id), "status", "evaluations")
            replies = cast("list[list[bytes | None] | Exception]", pipe.execute(raise_on_error=False))
        active = {}
        for job_id, reply in zip(job_ids, replies, strict=True):
            if not isinstance(reply, Exception) and reply[0] in (b"queued", b"running"):
                active[job_id] = _count(reply[1])
        return active

    def page(self, owner: str, limit: int, after: JobCursor | None = None) -> list[JobRecord]:
        """A caller's jobs, newest first, from behind a cursor on; drops expired ones from the list."""
        page: list[JobRecord] = []
        while len(page) < limit and (cursors := self._cursors(owner, limit, after)):
            found = self._reader.read([cursor.id for cursor in cursors])
            self._drop_expired(owner, [job_id for job_id, record in found.items() if record is None])
            page += self._readable(found).values()
            after = cursors[-1]
        return page[:limit]

    def _cursors(self, owner: str, count: int, after: JobCursor | None) -> list[JobCursor]:
        """Some of the positions behind a cursor, newest first; [] at the end of the list."""
        highest, skipped = repr(after.created_at) if after is not None else "+inf", 0
        while True:
            try:
                with self._connection.reachable():
                    reply = self._connection.client.zrevrangebyscore(
                        keys.jobs(owner), highest, "-inf", skipped, count, withscores=True
                    )
            except RecordError as error:
                self._unreadable.skip("key", keys.jobs(owner), error)
                return []
            cursors = [
                JobCursor(score, job_id.decode(errors="replace"))
                for job_id, score in cast("list[tuple[bytes, float]]", reply)
            ]
            later = [cursor for cursor in cursors if after is None or cursor < after]
            if later or not cursors:
                return later
            skipped += len(cursors)  # all of them share the cursor's moment and precede it

    def _drop_expired(self, owner: str, job_ids: Sequence[str]) -> None:
        """Shorten the list; a Redis that refuses writes still lists."""
        if job_ids:
            with contextlib.suppress(StoreUnavailable), self._connection.reachable():
                self._connection.client.zrem(keys.jobs(owner), *job_ids)

    def _readable(self, found: Mapping[str, JobRecord | RecordError | None]) -> dict[str, JobRecord]:
        records = {}
        for job_id, record in found.items():
            if isinstance(record, RecordError):
                self._unreadable.skip("job", job_id, record)
            elif record is not None:
                records[job_id] = record
        return records


def _count(text: bytes | None) -> int:
    """A count; a damaged one is 0."""
    return int(text) if text is not None and text.isdigit() and len(text) < 16 else 0
