"""A receiver of webhooks on a loopback socket. It keeps what it gets and answers as the test says."""

from __future__ import annotations

import http.server
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import TIMEOUT

SECRET = "a secret of the tests of webhooks"


@dataclass(frozen=True)
class Received:
    """A request. at: by `time.monotonic`."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float


class Receiver:
    """answer: the status for each request; statuses: those of the first requests, in place of it.

    certificate: with its key, for TLS.
    hold: requests are answered when it is set.
    """

    def __init__(
        self,
        answer: int = 200,
        statuses: list[int] | None = None,
        headers: dict[str, str] | None = None,
        certificate: Path | None = None,
        port: int = 0,
    ) -> None:
        self.received: list[Received] = []
        self.hold = threading.Event()
        self.hold.set()
        self.concurrent = self.most_concurrent = 0
        self._answer, self._statuses, self._headers = answer, list(statuses or []), headers or {}
        self._lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._scheme = "https" if certificate else "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def origin(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def handle(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            self.received.append(Received(handler.path, headers, body, time.monotonic()))
            self.concurrent += 1
            self.most_concurrent = max(self.most_concurrent, self.concurrent)
            status = self._statuses.pop(0) if self._statuses else self._answer
        self.hold.wait(TIMEOUT)
        with self._lock:
            self.concurrent -= 1
        handler.send_response(status)
        for name, value in self._headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()


def until(condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)
