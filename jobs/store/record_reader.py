"""Reads the records of jobs, each by itself: one that is damaged or larger than any record hides no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redis.client import Pipeline

from denoised.jobs.errors import RecordError
from denoised.jobs.record import JobRecord
from denoised.jobs.results.results import Results
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.job_functions import MAX_PICTURE_BYTES, MAX_RECORD_BYTES, MAX_RECORD_FIELDS
from denoised.jobs.store.scripts.job_scripts import READ
from denoised.jobs.store.store_connection import StoreConnection


class RecordReader:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection, results: Results | None = None) -> None:
        """results: where pictures lie; only `read_with_pictures` needs it."""
        self._connection = connection
        self._results = results
        self._script = connection.client.register_script(READ)

    def read(self, job_ids: Sequence[str]) -> dict[str, JobRecord | RecordError | None]:
        """The records by id, in one round trip; None for an unknown job, the error for a record that is damaged."""

        def queue_commands(pipe: Pipeline) -> None:
            for job_id in job_ids:
                self._queue(job_id, pipe)

        replies = self._run(queue_commands)
        return {job_id: self._decoded(reply) for job_id, reply in zip(job_ids, replies, strict=True)}

    def read_with_pictures(self, job_id: str, pictures: int) -> tuple[JobRecord | None, dict[int, bytes]]:
        """A record and those of its first `pictures` pictures that are finished, in one round trip to Redis.

        Raises:
            RecordError: when the record is damaged.
        """

        def queue_commands(pipe: Pipeline) -> None:
            self._queue(job_id, pipe)
            for index in range(pictures):
                pipe.getrange(keys.image(job_id, index), 0, MAX_PICTURE_BYTES)

        reply, *replies = self._run(queue_commands)
        values = {index: bounded_value(data, MAX_PICTURE_BYTES) for index, data in enumerate(replies)}
        assert self._results is not None
        images = {index: self._results.value(job_id, data, MAX_PICTURE_BYTES) for index, data in values.items()}
        finished = {index: data for index, data in images.items() if data is not None}
        return raise_if_damaged(self._decoded(reply)), finished

    def _queue(self, job_id: str, pipeline: Pipeline) -> None:
        pipeline.evalsha(self._script.sha, 1, keys.job(job_id))

    def _run(self, queue_commands: Callable[[Pipeline], None]) -> list[Any]:
        with self._connection.reachable():
            return self._connection.run_script(self._script, queue_commands)

    def _decoded(self, reply: Any) -> JobRecord | RecordError | None:
        try:
            fields = decode_reply(reply)
            return JobRecord.from_fields(fields) if fields else None
        except RecordError as error:
            return error


def bounded_value(reply: Any, limit: int) -> bytes | None:
    """The reply to `GETRANGE key 0 limit`; None when the key is missing, damaged, or longer than `limit` bytes."""
    return reply if isinstance(reply, bytes) and 0 < len(reply) <= limit else None


def raise_if_damaged(record: JobRecord | RecordError | None) -> JobRecord | None:
    """The record of a job, None when it is unknown.

    Raises:
        RecordError: when it is damaged.
    """
    if isinstance(record, RecordError):
        raise record
    return record


def decode_reply(reply: Any) -> dict[str, str]:
    """The reply of `job_scripts.READ` as text; bytes that are not UTF-8 become replacement characters.

    Raises:
        RecordError: when the key is not a hash, or the record is larger than any record is.
    """
    if isinstance(reply, RecordError):
        raise reply
    if reply is None:
        limits = f"{MAX_RECORD_FIELDS} fields and {MAX_RECORD_BYTES} bytes"
        raise RecordError(f"the job record is too large (allowed: {limits})")
    return decode_fields(dict(zip(reply[::2], reply[1::2], strict=True)))


def decode_fields(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    """A Redis hash as text; bytes that are not UTF-8 become replacement characters."""
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
