"""uvicorn's protocols, which answer malformed HTTP and malformed WebSocket handshakes with problem objects.

Such requests never reach the app, so their request id and log line are made here.
"""

from __future__ import annotations

import logging
import sys
import uuid
from http import HTTPStatus
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.http11 import Response as WebSocketResponse
from websockets.server import ServerProtocol

from denoised.app.http.error_formats import PROBLEM_JSON
from denoised.app.http.errors import BadRequest
from denoised.app.http.request_context import REQUEST_ID_HEADER
from denoised.app.http.validation_errors import MAX_VALUE_LENGTH
from denoised.jobs.log import REQUEST_ID

log = logging.getLogger("denoised.api")

CAN_RESPOND = (h11.IDLE, h11.SEND_RESPONSE)  # states in which no response has started


class HttpProtocol(H11Protocol):
    """HTTP/1.1 for uvicorn."""

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP. The exception in flight is h11's; it says more than uvicorn's `msg`."""
        if self.conn.our_state in CAN_RESPOND:
            response = _refusal(400, f"invalid HTTP: {str(sys.exception() or msg)[:MAX_VALUE_LENGTH]}")
            reason = HTTPStatus(400).phrase.encode()
            start = h11.Response(status_code=400, headers=response.raw_headers, reason=reason)
            for event in (start, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class SocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket for uvicorn, without compression of messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = Handshake(max_size=self.config.ws_max_size, logger=self.logger)


class Handshake(ServerProtocol):
    """The WebSocket protocol of one connection."""

    def reject(self, status: HTTPStatus | int, text: str) -> WebSocketResponse:
        """text: the reason, as `websockets` words it."""
        response = _refusal(HTTPStatus(status).value, text.strip())
        headers = Headers((name.decode(), value.decode()) for name, value in response.raw_headers)
        return WebSocketResponse(response.status_code, HTTPStatus(status).phrase, headers, bytes(response.body))


def _refusal(status: int, detail: str) -> Response:
    """A response after which the connection is closed."""
    token = REQUEST_ID.set(uuid.uuid4().hex)
    try:
        headers = {"Connection": "close", "X-Content-Type-Options": "nosniff", REQUEST_ID_HEADER: REQUEST_ID.get()}
        problem = BadRequest(detail, headers)
        problem.status = status
        log.info("request", extra={"status": status})
        return PROBLEM_JSON.response(problem)
    finally:
        REQUEST_ID.reset(token)
