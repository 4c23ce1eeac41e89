"""Uvicorn, told how to end: not ready at once, streams closed, then the sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from denoised.app.http.protocols import HttpProtocol, SocketProtocol
from denoised.app.main import create_app
from denoised.app.settings import MAX_SOCKET_MESSAGE, PING_SECONDS, ApiSettings

LINGER_SECONDS = 1.0  # still answering, not ready any more, so that those who ask /readyz see it
SHUTDOWN_SECONDS = 7
# Bytes that the kernel holds for a client that does not read. By itself it takes up to 4 MiB each, all of which would
# be encoded, framed and copied for nobody before the listener counts as slow.
SEND_BUFFER = 64 * 1024


def _mended(record: logging.LogRecord) -> bool:
    """Uvicorn 0.54 takes a refused WebSocket handshake for an unfinished one and logs an error (its PR 3138): dropped.
    A client's broken UTF-8 is no error of the server's, and its traceback tells nothing."""
    message = record.getMessage()
    if message.startswith("Invalid UTF-8"):
        record.levelno, record.levelname, record.exc_info = logging.INFO, "INFO", None
    return "without completing handshake" not in message


class Server(uvicorn.Server):
    """A uvicorn server that drains the app as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._application = app
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None or self._application.state.services.draining:
            super().handle_exit(sig, frame)
        else:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        assert self._loop is not None
        self._application.state.services.drain()
        self._loop.call_later(LINGER_SECONDS, self._exit)

    def _exit(self) -> None:
        """As uvicorn does on a signal; it would raise that again at the end, and the exit code be none of ours."""
        self.should_exit = True


def serve(settings: ApiSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=HttpProtocol,
        ws=SocketProtocol,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PING_SECONDS,
        ws_max_size=MAX_SOCKET_MESSAGE,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        access_log=False,
        server_header=False,
        log_config=None,
    )
    # Its lines about sockets repeat the query, where a ticket stands.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_mended)
    listening = config.bind_socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # accepted sockets inherit it
    Server(config, app).run(sockets=[listening])
