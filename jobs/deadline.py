"""The time that a request may wait for Redis, and Redis' errors as our own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import redis

from denoised.jobs.errors import StoreFull, StoreUnavailable

# Conditions that may pass: no connection, a timeout, memory full, a read-only replica.
TRANSIENT_ERRORS = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
)
REDIS_ERRORS = (*TRANSIENT_ERRORS, StoreUnavailable)  # the same, from a Redis client or from the store


class RedisDeadline:
    """The seconds that a request may still spend waiting for Redis; only the waiting counts."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds


# Of the current request; None means no limit beyond each command's own timeout.
REDIS_DEADLINE: ContextVar[RedisDeadline | None] = ContextVar("redis_deadline", default=None)


@contextmanager
def reachable() -> Iterator[None]:
    """Wrap one round trip: translate Redis' transient errors, and charge the time to the deadline.

    Raises:
        StoreFull: when Redis has no memory left.
        StoreUnavailable: when it does not answer, or earlier round trips have used up the deadline.
    """
    deadline = REDIS_DEADLINE.get()
    if deadline is not None and deadline.left <= 0:
        raise StoreUnavailable("Redis answers too slowly")
    started = time.monotonic()
    try:
        yield
    except redis.exceptions.OutOfMemoryError as error:
        raise StoreFull(f"Redis does not answer ({error})") from error
    except TRANSIENT_ERRORS as error:
        raise StoreUnavailable(f"Redis does not answer ({error})") from error
    finally:
        if deadline is not None:
            deadline.left -= time.monotonic() - started
