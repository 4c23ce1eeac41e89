"""Limits of one connection and of all connections together: sizes, times, and how many."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import h11

from denoised.app.http.transport.request_target import to_origin_form

log = logging.getLogger("denoised.api")

# Of a request.
MAX_TARGET = 8 * 1024  # bytes
MAX_HEADER_BYTES = 32 * 1024
MAX_HEADERS = 100
# A chunked body may have this many chunks of any size; more must have this many bytes on average.
FREE_CHUNKS, MEAN_CHUNK_BYTES = 1000, 64
# Seconds.
HEADER_SECONDS = 10.0  # until a connection has sent its first request, and any request its headers
BODY_SECONDS = 60.0  # until a request has sent its body
STALLED_SECONDS = 20.0  # without progress after which a client that does not read is dropped; twice that at most
LOG_SECONDS = 10.0  # between log lines about the limit of connections
HALF_CLOSED = "half_closed"  # set in the state of a request's scope when its client has closed its sending side
RESERVED_FOR_HEALTH = 32  # connections over the limit that may ask for the server's health


class BoundedConnection(h11.Connection):
    """An HTTP/1.1 connection of the server that refuses large headers and bodies in tiny chunks."""

    def __init__(self, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self._chunks = self._chunk_bytes = 0

    def next_event(self) -> Any:
        """The next event.

        Raises:
            h11.RemoteProtocolError: also for a request over the limits; its `error_status_hint` is the status.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._chunk_bytes = 0
            _check_request(event)
            event = to_origin_form(event)
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._chunk_bytes += len(event.data)
            if self._chunks > max(FREE_CHUNKS, self._chunk_bytes // MEAN_CHUNK_BYTES):
                raise h11.RemoteProtocolError(
                    f"{self._chunks} chunks have {self._chunk_bytes} bytes (allowed: {MEAN_CHUNK_BYTES} on average)"
                )
        return event


def _check_request(request: h11.Request) -> None:
    size = sum(len(name) + len(value) for name, value in request.headers)
    count = len(request.headers)
    if len(request.target) > MAX_TARGET:
        detail = f"the path and query have {len(request.target)} bytes (allowed: {MAX_TARGET})"
        raise h11.RemoteProtocolError(detail, error_status_hint=414)
    if size > MAX_HEADER_BYTES or count > MAX_HEADERS:
        detail = f"{count} headers have {size} bytes (allowed: {MAX_HEADERS} with {MAX_HEADER_BYTES})"
        raise h11.RemoteProtocolError(detail, error_status_hint=431)


class WriteWatch:
    """Drops the connection of a client that takes none of the bytes that wait for it.

    Sizes are compared only while nothing is added to the buffer: the app waits, or the connection is being closed.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting = 0
        self.paused = False
        self._timer = loop.call_later(STALLED_SECONDS, self._check)

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        full = self.paused or self._transport.is_closing()
        waiting = self._transport.get_write_buffer_size() if full else 0
        if waiting and waiting >= self._waiting > 0:
            log.info("client dropped", extra={"reason": f"it read nothing for {STALLED_SECONDS:g} s"})
            self._transport.abort()
            return
        self._waiting = waiting
        self._timer = self._loop.call_later(STALLED_SECONDS, self._check)


class Evictable(Protocol):
    """A connection as `ConnectionLimit` sees it."""

    @property
    def incomplete_since(self) -> float | None:
        """Since when its client owes the rest of a request, by `time.monotonic`; None when a request is complete."""

    def evict(self) -> None:
        """Close the connection."""


@dataclass
class ConnectionLimit:
    """The most connections at once; above it, those that have sent no complete request make room, the oldest first.

    Attributes:
        most: the limit; None = no limit.
    """

    most: int | None = None
    _logged_at: float = field(default=float("-inf"))

    def excess(self, connections: Collection[object]) -> int:
        """How far a new connection, which is one of `connections`, is above the limit after one made room."""
        if self.most is None or len(connections) <= self.most:
            return 0
        incomplete = [
            (since, each) for each in connections if (since := getattr(each, "incomplete_since", None)) is not None
        ]
        self._log(len(connections), len(incomplete))
        # The new connection is incomplete, too, and the newest.
        if len(incomplete) > 1:
            oldest: Evictable = min(incomplete, key=lambda pair: pair[0])[1]  # type: ignore[assignment]
            oldest.evict()
            return 0
        return len(connections) - self.most

    def _log(self, connections: int, incomplete: int) -> None:
        now = time.monotonic()
        if now - self._logged_at < LOG_SECONDS:
            return
        self._logged_at = now
        fields = {"connections": connections, "limit": self.most, "without_request": incomplete}
        log.warning("too many connections", extra=fields)
