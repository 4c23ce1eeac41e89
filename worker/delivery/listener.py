"""Hears of new work and of cancels, so that nobody has to ask for them again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis

from denoised.jobs.deadline import AWAY
from denoised.jobs.redis_keys import CANCELED_CHANNEL, model_channel

POLL_SECONDS = 1.0
SILENT_SECONDS = 5.0  # after which Redis is asked for a sign of life, and given up when none comes as long again


class Listener(threading.Thread):
    """Subscribed for as long as the worker lives; reconnects for ever.

    wake(model) is called when work was queued for one of `models`, wake(None) when it may have been for any while
    nobody listened; cancel(job id) when a job was canceled, whoever has it.
    """

    def __init__(
        self,
        client: redis.Redis,
        models: Iterable[str],
        wake: Callable[[str | None], None],
        cancel: Callable[[str], None],
    ) -> None:
        super().__init__(name="listener", daemon=True)
        self._client = client
        self._models = {model_channel(model): model for model in models}
        self._wake = wake
        self._cancel = cancel
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._listen()
            except AWAY:
                self._stopped.wait(POLL_SECONDS)

    def _listen(self) -> None:
        with self._client.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe(CANCELED_CHANNEL, *self._models)
            self._wake(None)
            heard, asked = time.monotonic(), False
            while not self._stopped.is_set():
                message = pubsub.get_message(timeout=POLL_SECONDS)
                if message is not None:
                    heard, asked = time.monotonic(), False
                    self._tell(message)
                elif time.monotonic() - heard > 2 * SILENT_SECONDS:
                    raise redis.exceptions.TimeoutError("a connection that says nothing")
                elif time.monotonic() - heard > SILENT_SECONDS and not asked:
                    pubsub.ping()
                    asked = True

    def _tell(self, message: dict[str, Any]) -> None:
        if message["type"] == "pong":
            return
        channel = message["channel"].decode()
        if channel == CANCELED_CHANNEL:
            self._cancel(message["data"].decode())
        else:
            self._wake(self._models[channel])
