"""One client's place in the events of one job. Used in the event loop only."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

Event = dict[str, Any]

# Buffered for a listener; one that is further behind reads the rest from the store.
BUFFER_SIZE = 64  # events
BUFFER_BYTES = 128 * 1024
EVENT_BYTES = 256  # of an event without its picture


class ServerClosing(Exception):
    """The server is shutting down; the stream ends before the job does."""


class JobGone(Exception):
    """The job is no longer stored: it expired, or the store was emptied."""


class KeyRevoked(Exception):
    """The API key that the listener came with is no longer accepted."""


class EventListener:
    """A bounded buffer of live events.

    Attributes:
        behind: the buffer overflowed and was dropped; the missing events have to be read from the store.
    """

    def __init__(self, job_id: str, key: str = "") -> None:
        """key: the hash of the API key that it came with."""
        self.job_id = job_id
        self.key = key
        self.behind = False
        self._buffer: deque[Event] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._end: type[ServerClosing | JobGone | KeyRevoked] | None = None

    def offer(self, event: Event) -> None:
        """Buffer an event; when the buffer is full, drop all of it and set `behind`."""
        if self.behind:
            return
        self._buffer.append(event)
        self._bytes += _size(event)
        if len(self._buffer) > BUFFER_SIZE or self._bytes > BUFFER_BYTES + _size(self._buffer[0]):
            self.behind = True
            self._drop()
        self._changed.set()

    def catch_up(self) -> None:
        """Buffer events again, beginning with an empty buffer."""
        self._drop()
        self.behind = False

    def close(self) -> None:
        """Let `next` raise ServerClosing once the buffer is empty."""
        self._finish(ServerClosing)

    def job_is_gone(self) -> None:
        """Let `next` raise JobGone once the buffer is empty."""
        self._finish(JobGone)

    def key_is_revoked(self) -> None:
        """Let `next` raise KeyRevoked, and drop the buffer."""
        self._drop()
        self._finish(KeyRevoked)

    async def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None when none arrives within `timeout` seconds, or when the listener is `behind`.

        Raises:
            ServerClosing: on shutdown.
            JobGone: when the job is no longer stored.
            KeyRevoked: when the listener's key is no longer accepted.
        """
        if not self._buffer and self._end is None and not self.behind:
            self._changed.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                return None
        if not self._buffer:
            if self._end is not None:
                raise self._end
            return None  # behind
        event = self._buffer.popleft()
        self._bytes -= _size(event)
        return event

    def _finish(self, end: type[ServerClosing | JobGone | KeyRevoked]) -> None:
        self._end = self._end or end
        self._changed.set()

    def _drop(self) -> None:
        self._buffer.clear()
        self._bytes = 0


def _size(event: Event) -> int:
    """Bytes, about."""
    return EVENT_BYTES + len(str(event.get("data", "")))
