"""Hears of new work and of cancels, so that nobody has to ask for them again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis

from worker.keys import CANCELED_CHANNEL
from worker.patience import AWAY

POLL_SECONDS = 1.0
SILENT_SECONDS = 5.0  # after which Redis is asked for a sign of life, and given up when none comes as long again


class Listener(threading.Thread):
    """Subscribed for as long as the worker lives; reconnects for ever.

    wake() is called when work was queued on one of `channels`, or may have been while nobody
    listened; cancel(job id) when a job was canceled, whoever has it.
    """

    def __init__(
        self, client: redis.Redis, channels: Sequence[str], wake: Callable[[], None], cancel: Callable[[str], None]
    ) -> None:
        super().__init__(name="listener", daemon=True)
        self._client = client
        self._channels = channels
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
            pubsub.subscribe(CANCELED_CHANNEL, *self._channels)
            self._wake()
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
        if message["channel"].decode() == CANCELED_CHANNEL:
            self._cancel(message["data"].decode())
        else:
            self._wake()
