"""The time that a request may wait for Redis, and Redis' errors as our own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import redis

from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.redis.refusals import store_error


class RedisDeadline:
    """The seconds that a request may still spend waiting for Redis; only the waiting counts."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds


# Of the current request; None means no limit beyond each command's own timeout.
REDIS_DEADLINE: ContextVar[RedisDeadline | None] = ContextVar("redis_deadline", default=None)


@contextmanager
def reachable() -> Iterator[None]:
    """Wrap one round trip: translate the errors of redis-py (`jobs.redis.refusals`), charge the time to the deadline.

    WatchError passes through, since it belongs to the caller's transaction, and so does DataError, a defect of ours.

    Raises:
        StoreFull: when Redis has no memory left.
        StoreUnavailable: when it does not answer or refuses, or earlier round trips have used up the deadline.
        RecordError: when a stored value is damaged.
        MemoryError: when this process has no memory for the reply.
    """
    deadline = REDIS_DEADLINE.get()
    if deadline is not None and deadline.left <= 0:
        raise StoreUnavailable("Redis answers too slowly")
    started = time.monotonic()
    try:
        yield
    except (redis.exceptions.WatchError, redis.exceptions.DataError):
        raise
    except redis.exceptions.InvalidResponse as error:
        if str(error) == "Out of memory":  # hiredis could not allocate the reply
            raise MemoryError("no memory for a reply of Redis") from error
        raise store_error(error) from error
    except redis.exceptions.RedisError as error:
        raise store_error(error) from error
    finally:
        if deadline is not None:
            deadline.left -= time.monotonic() - started
