"""Several jobs at once: records by id, progress of the active ones, and the list of a caller's jobs.

A record that cannot be read is skipped and logged once, so that it never hides the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from denoised.jobs import redis_keys as keys
from denoised.jobs.errors import RecordError
from denoised.jobs.format import UnreadableLog
from denoised.jobs.record import JobRecord
from denoised.jobs.store_connection import StoreConnection


@dataclass(frozen=True, order=True)
class JobCursor:
    """A position in the list of a caller's jobs; the id orders jobs created at the same moment."""

    created_at: float
    id: str


class JobListing:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection
        self._unreadable = UnreadableLog()

    def records(self, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """The readable records by id, in one round trip."""
        found = self._hashes(job_ids)
        return {job_id: record for job_id, fields in found.items() if (record := self._read(job_id, fields))}

    def active_evaluations(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Evaluations made so far for those of the jobs that are queued or running."""
        with self._connection.reachable(), self._connection.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(keys.job(job_id), "status", "evaluations")
            replies = cast("list[list[bytes | None]]", pipe.execute())
        active = {}
        for job_id, (status, evaluations) in zip(job_ids, replies, strict=True):
            if status in (b"queued", b"running"):
                active[job_id] = int(evaluations) if evaluations is not None and evaluations.isdigit() else 0
        return active

    def page(self, owner: str, limit: int, after: JobCursor | None = None) -> list[JobRecord]:
        """A caller's jobs, newest first, from behind a cursor on; drops expired ones from the list."""
        page: list[JobRecord] = []
        while len(page) < limit and (cursors := self._cursors(owner, limit, after)):
            hashes = self._hashes([cursor.id for cursor in cursors])
            expired = [job_id for job_id, fields in hashes.items() if not fields]
            if expired:
                with self._connection.reachable():
                    self._connection.client.zrem(keys.jobs(owner), *expired)
            page += [record for job_id, fields in hashes.items() if (record := self._read(job_id, fields))]
            after = cursors[-1]
        return page[:limit]

    def _cursors(self, owner: str, count: int, after: JobCursor | None) -> list[JobCursor]:
        """Some of the positions behind a cursor, newest first; [] at the end of the list."""
        highest, skipped = repr(after.created_at) if after is not None else "+inf", 0
        while True:
            with self._connection.reachable():
                reply = self._connection.client.zrevrangebyscore(
                    keys.jobs(owner), highest, "-inf", skipped, count, withscores=True
                )
            cursors = [JobCursor(score, job_id.decode()) for job_id, score in cast("list[tuple[bytes, float]]", reply)]
            later = [cursor for cursor in cursors if after is None or cursor < after]
            if later or not cursors:
                return later
            skipped += len(cursors)  # all of them share the cursor's moment and precede it

    def _hashes(self, job_ids: Sequence[str]) -> dict[str, Mapping[bytes, bytes]]:
        with self._connection.reachable(), self._connection.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(keys.job(job_id))
            return dict(zip(job_ids, pipe.execute(), strict=True))

    def _read(self, job_id: str, fields: Mapping[bytes, bytes]) -> JobRecord | None:
        try:
            return decode_record(fields)
        except RecordError as error:
            self._unreadable.skip("job", job_id, error)
            return None


def decode_record(fields: Mapping[bytes, bytes]) -> JobRecord | None:
    """The record that a Redis hash holds, None for an empty one.

    Raises:
        RecordError: when it cannot be read.
    """
    return JobRecord.from_fields(decode_fields(fields)) if fields else None


def decode_fields(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    """A Redis hash as text; bytes that are not UTF-8 become replacement characters."""
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
