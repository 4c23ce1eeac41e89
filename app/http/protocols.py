"""HTTP and WebSocket below the app, as uvicorn speaks them: what breaks their rules gets a problem object, too.

The app never hears of it, so that id and line in the log are made here.
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
from websockets.http11 import Response as Rejection
from websockets.server import ServerProtocol

from denoised.app.http.errors import SHOWN, Malformed
from denoised.app.http.request_context import HEADER
from denoised.jobs.log import REQUEST_ID

log = logging.getLogger("denoised.api")

UNANSWERED = (h11.IDLE, h11.SEND_RESPONSE)


class HttpProtocol(H11Protocol):
    """Refuses what is no HTTP."""

    def send_400_response(self, msg: str) -> None:
        """Called while h11's error is handled, which says more than uvicorn's `msg`."""
        if self.conn.our_state in UNANSWERED:
            answer = _refusal(400, f"this is no valid HTTP: {str(sys.exception() or msg)[:SHOWN]}")
            start = h11.Response(status_code=400, headers=answer.raw_headers, reason=HTTPStatus(400).phrase.encode())
            for event in (start, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class SocketProtocol(WebSocketsSansIOProtocol):
    """Refuses handshakes that are none; messages are not compressed."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = Handshake(max_size=self.config.ws_max_size, logger=self.logger)


class Handshake(ServerProtocol):
    """The WebSocket of one client, as far as the bytes."""

    def reject(self, status: HTTPStatus | int, text: str) -> Rejection:
        """text: what is wrong, in the words of `websockets`."""
        answer = _refusal(HTTPStatus(status).value, text.strip())
        headers = Headers((name.decode(), value.decode()) for name, value in answer.raw_headers)
        return Rejection(answer.status_code, HTTPStatus(status).phrase, headers, bytes(answer.body))


def _refusal(status: int, detail: str) -> Response:
    """A problem as an answer after which the connection ends."""
    token = REQUEST_ID.set(uuid.uuid4().hex)
    try:
        problem = Malformed(detail)
        problem.status = status
        own = {"Connection": "close", "X-Content-Type-Options": "nosniff", HEADER: REQUEST_ID.get()}
        problem.headers.update(own)
        log.info("request", extra={"status": status})
        return problem.response("")
    finally:
        REQUEST_ID.reset(token)
