"""The .npy files of jobs that compute more than pictures."""

from __future__ import annotations

from denoised.jobs.results.results import Results
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.record_reader import bounded_value
from denoised.jobs.store.scripts.job_functions import MAX_PICTURE_BYTES
from denoised.jobs.store.store_connection import StoreConnection


class ArrayFiles:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection, results: Results) -> None:
        self._connection = connection
        self._results = results

    def read(self, job_id: str, index: int, name: str) -> bytes | None:
        """The file of an array; None when it is not computed, has expired, or is larger than any."""
        with self._connection.reachable():
            found = self._connection.client.getrange(keys.array(job_id, index, name), 0, MAX_PICTURE_BYTES)
        return self._results.value(job_id, bounded_value(found, MAX_PICTURE_BYTES), MAX_PICTURE_BYTES)
