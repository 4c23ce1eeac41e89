"""The response of every event stream (SSE): its headers, its pings, and its share of the caller's streams."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from denoised.app.http.transport.connection_limits import HALF_CLOSED
from denoised.app.settings import PING_SECONDS

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second: no buffering by nginx
QUIET_SECONDS = 1.0  # after which a source of events without a new one yields None
PING = format_sse_event(comment="ping")


class EventStreamResponse(EventSourceResponse):
    """An SSE response. A quiet stream is pinged; more often if the client has closed its sending side, to find out
    whether it still exists.

    events: encoded events; None at least every `QUIET_SECONDS` in between.
    slot: entered while the stream is open. What it raises becomes the response.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes | None],
        slot: AbstractContextManager[None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(self._pinged(events), headers={**STREAM_HEADERS, **(headers or {})})
        self._slot = slot
        self._state: Mapping[str, object] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._state = scope.get("state", {})
        with self._slot:
            await super().__call__(scope, receive, send)

    async def _pinged(self, events: AsyncIterator[bytes | None]) -> AsyncIterator[bytes]:
        sent_at = time.monotonic()
        async for event in events:
            interval = QUIET_SECONDS if self._state.get(HALF_CLOSED) else PING_SECONDS
            if event is None and time.monotonic() - sent_at < interval:
                continue
            yield PING if event is None else event
            sent_at = time.monotonic()
