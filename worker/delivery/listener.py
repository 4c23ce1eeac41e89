"""Listens for new jobs and for cancels on Redis' channels, so that nobody has to poll for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis

from denoised.jobs.errors import StoreError
from denoised.jobs.redis.deadline import reachable
from denoised.jobs.store.redis_keys import CANCELED_CHANNEL, model_channel

POLL_SECONDS = 1.0
SILENT_SECONDS = 5.0  # after which Redis is pinged; after as long again without an answer, the connection is dropped


class Listener(threading.Thread):
    """Stays subscribed until it is stopped, and reconnects as often as necessary.

    wake(model): called when work was queued for one of `models`; wake(None) after each reconnect, since work may have
    been queued for any of them.
    cancel(job id): called when a job was canceled, whichever worker has it.
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
        self.listen_to(models)
        self._wake = wake
        self._cancel = cancel
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def listen_to(self, models: Iterable[str]) -> None:
        """Listen for jobs of these models, within about `POLL_SECONDS`."""
        self._models = {model_channel(model): model for model in models}

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                with reachable():
                    self._listen()
            except (StoreError, MemoryError):  # the other threads log it
                self._stopped.wait(POLL_SECONDS)

    def _listen(self) -> None:
        with self._client.pubsub(ignore_subscribe_messages=True) as pubsub:
            subscribed = self._models
            pubsub.subscribe(CANCELED_CHANNEL, *subscribed)
            self._wake(None)
            heard_at, pinged = time.monotonic(), False
            while not self._stopped.is_set():
                if self._models is not subscribed:
                    return  # to subscribe again
                message = pubsub.get_message(timeout=POLL_SECONDS)
                if message is not None:
                    heard_at, pinged = time.monotonic(), False
                    self._dispatch(message)
                elif time.monotonic() - heard_at > 2 * SILENT_SECONDS:
                    raise redis.exceptions.TimeoutError("the connection is silent")
                elif time.monotonic() - heard_at > SILENT_SECONDS and not pinged:
                    pubsub.ping()
                    pinged = True

    def _dispatch(self, message: dict[str, Any]) -> None:
        if message["type"] == "pong":
            return
        channel = message["channel"].decode()
        if channel == CANCELED_CHANNEL:
            self._cancel(message["data"].decode(errors="replace"))
        else:
            self._wake(self._models.get(channel))
