"""The uvicorn server. On SIGTERM or SIGINT it first reports "not ready", then closes streams, then its sockets."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from denoised.app.http.transport.connection_limits import ConnectionLimit
from denoised.app.http.transport.http_protocol import HttpProtocol
from denoised.app.http.transport.websocket_protocol import SocketProtocol
from denoised.app.launch.addresses import bind_socket
from denoised.app.main import create_app
from denoised.app.settings import MAX_SOCKET_MESSAGE, PING_SECONDS, ApiSettings

# Time during which the server still answers but /readyz reports "not ready", so that load balancers notice.
DRAIN_SECONDS = 1.0
SHUTDOWN_SECONDS = 7
# Bytes that the kernel buffers for a client that does not read. The default grows to 4 MiB per client, and a listener
# would count as slow only after all of it had been encoded and copied for nothing.
SEND_BUFFER_BYTES = 64 * 1024
# Open files: how many are asked of the system, and how many of them are not for clients but for Redis, for the program
# itself, and for connections that are accepted together before the limit is seen (as many as BACKLOG).
WANTED_FILES = 8192
RESERVED_FILES = 256
BACKLOG = 128

log = logging.getLogger("denoised.api")


def connection_limit() -> ConnectionLimit:
    """The most connections that fit below the limit of open files, which is raised as far as the system allows."""
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if most_files == resource.RLIM_INFINITY else min(WANTED_FILES, most_files)
    if files != resource.RLIM_INFINITY and files < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most_files))
        files = wanted
    files = WANTED_FILES if files == resource.RLIM_INFINITY else files
    return ConnectionLimit(max(files - RESERVED_FILES, files // 2))


def _filter_record(record: logging.LogRecord) -> bool:
    """Drop or lower records of uvicorn that are not errors of this server.

    Uvicorn 0.54 logs an error for a rejected WebSocket handshake, because it takes it for an incomplete one (uvicorn PR
    3138): dropped. A client's invalid UTF-8 becomes an INFO record without traceback.
    """
    message = record.getMessage()
    if message.startswith("Invalid UTF-8"):
        record.levelno, record.levelname, record.exc_info = logging.INFO, "INFO", None
    return "without completing handshake" not in message


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains the app before it shuts down."""

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
        self._loop.call_later(DRAIN_SECONDS, self._shut_down)

    def _shut_down(self) -> None:
        """Shut down as on a signal, but exit with code 0: uvicorn would raise the signal again at the end."""
        self.should_exit = True


def run_api(settings: ApiSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    app = create_app(settings)
    limit = connection_limit()
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        backlog=BACKLOG,
        http=partial(HttpProtocol, limit=limit),  # type: ignore[arg-type]
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
    # Uvicorn's lines about WebSockets contain the query string, which may contain a ticket.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_filter_record)
    listening = bind_socket(settings.host, settings.port)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # inherited by accepted sockets
    log.info("accepting connections", extra={"limit": limit.most})
    DrainingServer(config, app).run(sockets=[listening])
