"""Malformed HTTP and malformed WebSocket handshakes over a TCP socket are answered with problem objects."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

MALFORMED_HTTP = [
    (b"garbage\r\n\r\n", "illegal request line"),
    (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n", "multiple Host"),
    (b"GET /healthz HTTP/1.1\r\n\r\n", "Missing mandatory Host"),
    (b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n", "Content-Length"),
    (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Secret: \x00\r\n\r\n", "illegal header"),
    (
        b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "chunk header",
    ),
    (
        b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "Content-Length and Transfer-Encoding were both given",
    ),
]


def exchange(url: str, sent: bytes) -> tuple[httpx.Response, bytes]:
    """The response to some bytes, and the bytes after it until the server closed the connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65_536):
            received += part
    head, _, rest = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    length = int(httpx.Headers(headers)["content-length"])
    return httpx.Response(int(status.split()[1]), headers=headers, content=rest[:length]), rest[length:]


def check_refusal(answer: httpx.Response, status: int = 400) -> str:
    """Check a problem object with a request id; return its detail."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    problem: dict[str, Any] = json.loads(answer.content)
    assert {"type", "title", "status", "detail"} <= set(problem)
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    return str(problem["detail"])


@pytest.mark.parametrize(("sent", "cause"), MALFORMED_HTTP, ids=[cause for _, cause in MALFORMED_HTTP])
def test_malformed_http_is_a_problem_with_its_cause_and_closes_the_connection(
    sent: bytes, cause: str, url: str
) -> None:
    answer, rest = exchange(url, sent)
    detail = check_refusal(answer)
    assert cause in detail
    assert len(detail) < 200
    assert rest == b""


SHAKE = b"GET /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
MALFORMED_HANDSHAKES = [
    (b"Sec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Key", 400),
    (KEY + b"Sec-WebSocket-Version: 12\r\n", "Sec-WebSocket-Version", 426),
    (KEY, "Sec-WebSocket-Version", 400),
]


@pytest.mark.parametrize(("lines", "cause", "status"), MALFORMED_HANDSHAKES)
def test_a_malformed_handshake_is_a_problem_with_its_cause(lines: bytes, cause: str, status: int, url: str) -> None:
    answer, rest = exchange(url, SHAKE + lines + b"\r\n")
    assert cause in check_refusal(answer, status)
    assert rest == b""


def test_the_server_continues_after_malformed_http(url: str) -> None:
    exchange(url, b"garbage\r\n\r\n")
    assert httpx.get(f"{url}/healthz", trust_env=False, verify=False).status_code == 200


def test_a_preflight_from_a_foreign_origin_is_refused_with_a_problem(make_client: Callable[..., TestClient]) -> None:
    api = make_client(keys=("secret",), allowed_origins=frozenset({"https://ours.example"}))
    headers = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-mine", "Authorization": ""}
    answer = api.options("/generate", headers={"Origin": "https://theirs.example", **headers})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert "access-control-allow-origin" not in answer.headers
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "origin, headers" in answer.json()["detail"]
