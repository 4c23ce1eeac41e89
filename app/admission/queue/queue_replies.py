"""What Redis answers about RQ's queues, decoded; damaged values have a default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import redis

from denoised.jobs.errors import RecordError
from denoised.jobs.format import UnreadableLog
from denoised.jobs.redis.refusals import store_error

MAX_DIGITS = 15  # of a counter


def written_key(arguments: Sequence[Any]) -> str:
    """The key that a command of a transaction writes to; a script names it after its text and the number of keys."""
    return str(arguments[3] if arguments[0] == "EVAL" else arguments[1])


def credit_of(text: bytes) -> float | None:
    """A caller's credit; None before its first turn, or if it is damaged."""
    try:
        credit = float(text)
    except ValueError:
        return None
    return credit if math.isfinite(credit) else None


def count_of(text: bytes | None) -> int:
    """A counter; 0 if there is none, or if it is damaged."""
    return int(text) if text is not None and text.isdigit() and len(text) <= MAX_DIGITS else 0


def text_of(name: bytes) -> str:
    return name.decode(errors="replace")


def job_ids_of(executions: Sequence[bytes]) -> list[str]:
    """The distinct job ids of the entries of RQ's registry."""
    return list(dict.fromkeys(entry.decode(errors="replace").rpartition(":")[0] for entry in executions))


def readable(replies: Sequence[Any], unreadable: UnreadableLog) -> list[Any]:
    """The replies to a pipeline; a key that is damaged is as if it were empty.

    Raises:
        StoreUnavailable: when Redis refuses a command for another reason.
    """
    found = []
    for reply in replies:
        if isinstance(reply, redis.exceptions.RedisError):
            error = store_error(reply)
            if not isinstance(error, RecordError):
                raise error
            unreadable.skip("key", "queue", error)
            reply = []
        found.append(reply)
    return found
