"""Idempotency keys: which job a key of a caller stands for."""

from __future__ import annotations

import re
from typing import cast

from denoised.jobs.errors import RecordError
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.store_connection import StoreConnection

CLAIM_SECONDS = 86_400
BINDING = re.compile(rb"([\w-]{1,64}) ([\w-]{1,64})")  # job id and hash of the body


class IdempotencyKeys:
    """Every method raises StoreUnavailable when Redis does not answer in time, and RecordError for a damaged key."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection

    def claim(self, owner: str, key_hash: str, job_id: str, body_hash: str) -> tuple[str, str]:
        """Bind a key to a job, unless it is bound. Returns the (job id, body hash) that it is bound to."""
        name = keys.idempotency(owner, key_hash)
        with self._connection.reachable():
            won = self._connection.client.set(name, f"{job_id} {body_hash}", nx=True, ex=CLAIM_SECONDS)
        held = None if won else self.find(owner, key_hash)
        return held or (job_id, body_hash)

    def find(self, owner: str, key_hash: str) -> tuple[str, str] | None:
        """The (job id, body hash) that a key is bound to, None when it is not."""
        with self._connection.reachable():
            held = cast("bytes | None", self._connection.client.get(keys.idempotency(owner, key_hash)))
        if held is None:
            return None
        if (match := BINDING.fullmatch(held)) is None:
            raise RecordError("what is stored for the Idempotency-Key is damaged")
        return match[1].decode(), match[2].decode()
