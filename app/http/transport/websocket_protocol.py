"""uvicorn's WebSocket protocol: refused handshakes are problem objects, and clients that do not read are dropped."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from denoised.app.http.transport.connection_limits import WriteWatch
from denoised.app.http.transport.refusal import refusal_response
from denoised.app.http.validation_errors import MAX_VALUE_LENGTH

SOCKET_VERSION = "13"  # of the WebSocket protocol (RFC 6455)


class SocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket for uvicorn, without compression of messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = Handshake(max_size=self.config.ws_max_size, logger=self.logger)
        self._writes: WriteWatch | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._writes = WriteWatch(self.transport, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._writes is not None:
            self._writes.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.close_sent:
            self._refuse_handshake()

    def _refuse_handshake(self) -> None:
        """Answer a request that is not a handshake. uvicorn answers nothing, so the client would wait forever."""
        response = b"".join(self.conn.data_to_send())  # for lines that are too long
        if not response:
            detail = "invalid HTTP: the request is not a WebSocket handshake"
            response = self.conn.reject(HTTPStatus.BAD_REQUEST, detail).serialize()
        self.handshake_complete = self.close_sent = True
        self.transport.write(response)
        self.transport.close()

    def pause_writing(self) -> None:
        if self._writes is not None:
            self._writes.paused = True
        super().pause_writing()

    def resume_writing(self) -> None:
        if self._writes is not None:
            self._writes.paused = False
        super().resume_writing()


class Handshake(ServerProtocol):
    """The WebSocket protocol of one connection."""

    def accept(self, request: Request) -> Response:
        versions = request.headers.get_all("Sec-WebSocket-Version")
        if versions and versions != [SOCKET_VERSION]:
            given = ", ".join(versions)[:MAX_VALUE_LENGTH]
            detail = f"Sec-WebSocket-Version {given!r} is not supported (supported: {SOCKET_VERSION})"
            return self.reject(HTTPStatus.UPGRADE_REQUIRED, detail)
        return super().accept(request)

    def reject(self, status: HTTPStatus | int, text: str) -> Response:
        """text: the reason, as `websockets` words it."""
        response = refusal_response(HTTPStatus(status).value, text.strip())
        headers = Headers((name.decode(), value.decode()) for name, value in response.raw_headers)
        headers["Sec-WebSocket-Version"] = SOCKET_VERSION
        if status == HTTPStatus.UPGRADE_REQUIRED:
            headers["Upgrade"] = "websocket"
        return Response(response.status_code, HTTPStatus(status).phrase, headers, bytes(response.body))
