"""One client's place in the events of one job. Used in the event loop only."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

Event = dict[str, Any]

BUFFER_SIZE = 64  # events buffered for a listener; one that is further behind reads the rest from the store


class ServerClosing(Exception):
    """The server is shutting down; the stream ends before the job does."""


class EventListener:
    """A bounded buffer of live events.

    Attributes:
        behind: the buffer overflowed and was dropped; the missing events have to be read from the store.
    """

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.behind = False
        self._buffer: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._closing = False

    def offer(self, event: Event) -> None:
        """Buffer an event; when the buffer is full, drop all of it and set `behind`."""
        if self.behind:
            return
        if len(self._buffer) >= BUFFER_SIZE:
            self.behind = True
            self._buffer.clear()
        else:
            self._buffer.append(event)
        self._changed.set()

    def catch_up(self) -> None:
        """Buffer events again, beginning with an empty buffer."""
        self._buffer.clear()
        self.behind = False

    def close(self) -> None:
        """Let `next` raise ServerClosing once the buffer is empty."""
        self._closing = True
        self._changed.set()

    async def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None when none arrives within `timeout` seconds.

        Raises:
            ServerClosing: on shutdown.
        """
        if not self._buffer:
            if self._closing:
                raise ServerClosing
            self._changed.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                return None
            if not self._buffer:
                raise ServerClosing
        return self._buffer.popleft()
