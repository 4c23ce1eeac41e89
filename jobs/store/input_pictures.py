"""The pictures and arrays that jobs start from, each stored once per caller, digest and shape.

A picture is kept while a job that starts from it is not over, and `result_ttl` longer (`job_scripts.finish`).
Another caller cannot name it: its key holds the owner.
"""

from __future__ import annotations

from collections.abc import Mapping

from redis.client import Pipeline

from denoised.jobs.array_reading import ArrayShape
from denoised.jobs.picture_reading import PictureShape
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.input_quota import InputQuota
from denoised.jobs.store.record_reader import bounded_value
from denoised.jobs.store.scripts.job_functions import MAX_PICTURE_BYTES
from denoised.jobs.store.store_connection import StoreConnection


def input_key(owner: str, digest: str, shape: PictureShape | ArrayShape) -> str:
    """The key of a picture or an array. digest: `sha256:` and that of the file that the caller gave."""
    return keys.input_picture(owner, digest.removeprefix("sha256:"), shape.key)


class InputPictures:
    """Every method raises StoreUnavailable when Redis does not answer in time.

    quota: how many bytes each caller has stored.
    """

    def __init__(self, connection: StoreConnection, result_ttl: int) -> None:
        """result_ttl: seconds that a finished job is kept."""
        self._connection = connection
        self.quota = InputQuota(connection, result_ttl)

    def read(self, key: str) -> bytes | None:
        """The PNG of a picture; None when it is not stored, or is larger than any picture."""
        with self._connection.reachable():
            found = self._connection.client.getrange(key, 0, MAX_PICTURE_BYTES)
        return bounded_value(found, MAX_PICTURE_BYTES)


def add_inputs(job: str, pictures: Mapping[str, bytes], pipeline: Pipeline) -> None:
    """Add the pictures that a new job starts from to a transaction. pictures: PNGs by key."""
    for key, png in pictures.items():
        pipeline.set(key, png)  # without a time to live: an expiring one is kept again
        pipeline.sadd(keys.input_jobs(key), job)
