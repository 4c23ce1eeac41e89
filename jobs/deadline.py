"""How long Redis is waited for, and its silence as an error of our own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import redis

from denoised.jobs.errors import StoreFull, StoreUnavailable

# What passes: no connection, no answer in time, memory full, a replica that may not write.
AWAY = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
)
REDIS_ERRORS = (*AWAY, StoreUnavailable)  # the same, from a client of Redis or from the store


class RedisDeadline:
    """The seconds that may still be spent on waiting for Redis, question by question."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds


# Of whoever works for this request; None = as long as each question takes.
REDIS_DEADLINE: ContextVar[RedisDeadline | None] = ContextVar("patience", default=None)


@contextmanager
def reachable() -> Iterator[None]:
    """Around one question: Redis' silence, or its refusal to write for now, as our own error.

    Raises:
        StoreFull: when Redis has no memory.
        StoreUnavailable: when it does not answer, or the questions before took all the time there was.
    """
    patience = REDIS_DEADLINE.get()
    if patience is not None and patience.left <= 0:
        raise StoreUnavailable("Redis answers too slowly")
    started = time.monotonic()
    try:
        yield
    except redis.exceptions.OutOfMemoryError as error:
        raise StoreFull(f"Redis does not answer ({error})") from error
    except AWAY as error:
        raise StoreUnavailable(f"Redis does not answer ({error})") from error
    finally:
        if patience is not None:
            patience.left -= time.monotonic() - started
