"""The store's connection to Redis: a circuit breaker around every round trip, and pipelined scripts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.client import Pipeline
from redis.commands.core import Script

from denoised.jobs.errors import RecordError, StoreUnavailable
from denoised.jobs.redis.deadline import reachable
from denoised.jobs.redis.refusals import store_error

OPEN_SECONDS = 0.5  # how long nobody asks Redis again after it timed out


class StoreConnection:
    """A Redis client. Thread-safe."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._open_until = 0.0

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Wrap one round trip.

        After a timeout the circuit stays open for a moment, so that the few threads there are do not all wait for a
        Redis that is known to be silent.

        Raises:
            StoreUnavailable: when Redis does not answer in time, or refuses.
            RecordError: when a stored value is damaged.
        """
        if time.monotonic() < self._open_until:
            raise StoreUnavailable("Redis does not answer (it timed out a moment ago)")
        try:
            with reachable():
                yield
        except StoreUnavailable as error:
            if isinstance(error.__cause__, redis.exceptions.TimeoutError):
                self._open_until = time.monotonic() + OPEN_SECONDS
            raise

    def run_script(self, script: Script, queue_commands: Callable[[Pipeline], None]) -> list[Any]:
        """The replies to a pipeline that calls a script by its hash, in one round trip.

        redis-py's own pipelines ask for every script first whether it is loaded. Here a Redis that has forgotten it
        (it was restarted) refuses the call, which changes nothing; then the script is loaded and all is sent again.

        A reply that reports a damaged value is a RecordError in the list, so that it costs no other job its reply.

        Raises:
            StoreUnavailable: for every other error reply. The other commands may have been applied.
        """
        with self.client.pipeline(transaction=False) as pipe:
            queue_commands(pipe)
            replies = pipe.execute(raise_on_error=False)
            if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):
                self.client.script_load(script.script)
                queue_commands(pipe)
                replies = pipe.execute(raise_on_error=False)
        return [_checked(reply) for reply in replies]


def _checked(reply: Any) -> Any:
    if not isinstance(reply, redis.exceptions.RedisError):
        return reply
    error = store_error(reply)
    if isinstance(error, RecordError):
        return error
    raise error from reply
