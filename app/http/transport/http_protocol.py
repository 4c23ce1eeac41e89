"""uvicorn's HTTP/1.1 protocol with limits, half-closed clients, and refusals as problem objects."""

from __future__ import annotations

import asyncio
import sys
import time
from http import HTTPStatus
from typing import Any

import h11
from h11._connection import DEFAULT_MAX_INCOMPLETE_EVENT_SIZE
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from denoised.app.http.middleware.request_context import HEALTH_ROUTES
from denoised.app.http.transport.connection_limits import (
    BODY_SECONDS,
    HALF_CLOSED,
    HEADER_SECONDS,
    RESERVED_FOR_HEALTH,
    BoundedConnection,
    ConnectionLimit,
    WriteWatch,
)
from denoised.app.http.transport.refusal import refusal_response
from denoised.app.http.validation_errors import MAX_VALUE_LENGTH

CAN_RESPOND = (h11.IDLE, h11.SEND_RESPONSE)  # states in which no response has started
# A client that has closed its sending side (it waits for the answer), and one that is gone, look the same until we
# write: only the latter answers with a reset. Interim responses are what may be written before a response.
PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
PROBE_SECONDS = 1.0
LINGER_SECONDS = 1.0  # from a refusal until the connection is closed
RESTARTING = "the server is restarting; nothing was accepted, try again"
TOO_MANY = "the server has too many connections; nothing was accepted, try again"


class HttpProtocol(H11Protocol):
    """HTTP/1.1 for uvicorn. limit: shared by all connections of a server."""

    def __init__(self, *args: Any, limit: ConnectionLimit | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        largest = self.config.h11_max_incomplete_event_size
        self.conn = BoundedConnection(DEFAULT_MAX_INCOMPLETE_EVENT_SIZE if largest is None else largest)
        self._limit = limit or ConnectionLimit()
        self._incomplete_since: float | None = None
        self._half_closed = self._refused = False
        self._deadline: asyncio.TimerHandle | None = None
        self._phase = ""
        self._probe_timer: asyncio.TimerHandle | None = None
        self._writes: WriteWatch | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._writes = WriteWatch(transport, self.loop)
        self._incomplete_since = time.monotonic()
        self._update_deadline()
        excess = self._limit.excess(self.connections)
        if excess > RESERVED_FOR_HEALTH:
            self._refuse(503, TOO_MANY)
        elif excess:
            self.app = self._health_only

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            data = data.lstrip(b"\r\n")  # empty lines before a request (RFC 9112, 2.2)
        if data:
            super().data_received(data)
        if self.transport.get_protocol() is self:  # not a WebSocket by now
            self._update_deadline()

    def shutdown(self) -> None:
        """End the connection when the server stops: at once unless a complete request is being answered."""
        if self._refused:
            self.transport.close()
        elif self.conn.their_state is h11.SEND_BODY:
            self._refuse(503, RESTARTING)
        else:
            super().shutdown()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection of a client that has sent a complete request and waits for its response."""
        if not self._is_answering() or self.conn.their_state is h11.SEND_BODY:
            return False
        self._half_closed = True
        self.scope["state"][HALF_CLOSED] = True
        if self._probe_timer is None:
            self._probe_timer = self.loop.call_later(PROBE_SECONDS, self._probe)
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._incomplete_since = None if self._is_answering() else time.monotonic()
        if self._half_closed and self._is_answering():
            self.scope["state"][HALF_CLOSED] = True  # a pipelined request
        elif self._half_closed:
            self.transport.close()

    def pause_writing(self) -> None:
        if self._writes is not None:
            self._writes.paused = True
        super().pause_writing()

    def resume_writing(self) -> None:
        if self._writes is not None:
            self._writes.paused = False
        super().resume_writing()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        if self.app == self._health_only:
            self._refuse(503, TOO_MANY)
            return
        self._stop_timers()
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP. The exception in flight is h11's; it says more than uvicorn's `msg`."""
        error = sys.exception()
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        reason = str(error or msg).partition(": bytearray(")[0]  # h11 quotes what it read as Python would
        self._refuse(hint if hint < 500 else 400, f"invalid HTTP: {reason[:MAX_VALUE_LENGTH]}")

    @property
    def incomplete_since(self) -> float | None:
        return None if self.transport.is_closing() else self._incomplete_since

    def evict(self) -> None:
        self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _update_deadline(self) -> None:
        """Limit the time until the client has sent what it has begun: the headers of a request, or a body."""
        phase = "body" if self.conn.their_state is h11.SEND_BODY else ""
        if self.conn.their_state is h11.IDLE and not self._is_answering():
            phase = "headers"
        if phase != self._phase and self._deadline is not None:
            self._deadline.cancel()
        if phase and phase != self._phase:
            self._deadline = self.loop.call_later(BODY_SECONDS if phase == "body" else HEADER_SECONDS, self._expire)
        if not phase:
            self._incomplete_since = None
        self._phase = phase

    def _expire(self) -> None:
        begun = self._phase == "body" or self.conn.trailing_data[0]
        if begun and not self.transport.is_closing():
            seconds = BODY_SECONDS if self._phase == "body" else HEADER_SECONDS
            self._refuse(408, f"the {self._phase} of the request did not arrive within {seconds:g} s")
        else:
            self.transport.close()

    def _probe(self) -> None:
        """Find out whether a half-closed client still exists: if not, the second write fails."""
        if self.transport.is_closing() or not self._is_answering():
            self._probe_timer = None
            return
        if self.conn.our_state is h11.SEND_RESPONSE and self.conn.their_http_version == b"1.1":
            self.transport.write(PROBE)
        self._probe_timer = self.loop.call_later(PROBE_SECONDS, self._probe)

    def _stop_timers(self) -> None:
        for timer in (self._deadline, self._probe_timer):
            if timer is not None:
                timer.cancel()
        if self._writes is not None:
            self._writes.stop()

    def _refuse(self, status: int, detail: str) -> None:
        """Send a response, if none has started, and close the connection as soon as the client has had time to read it.

        What the client still sends is discarded: unread bytes would reset the connection, and the response with it
        (RFC 9112, 9.6).
        """
        if self._refused or self.transport.is_closing():
            return
        if self.conn.our_state in CAN_RESPOND:
            response = refusal_response(status, detail)
            start = h11.Response(
                status_code=status, headers=response.raw_headers, reason=HTTPStatus(status).phrase.encode()
            )
            for event in (start, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self._is_answering():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._refused = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    async def _health_only(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app for connections over the limit."""
        if scope["type"] == "http" and scope["path"] in HEALTH_ROUTES:
            await self.config.loaded_app(scope, receive, send)
        else:
            await refusal_response(503, TOO_MANY)(scope, receive, send)
