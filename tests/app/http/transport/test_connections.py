"""Connections that send too slowly, read too slowly, or are too many; and clients that close one side."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.sync.client

from denoised.app.http.transport import connection_limits, http_protocol
from denoised.app.http.transport.connection_limits import RESERVED_FOR_HEALTH, ConnectionLimit

HOST = "Host: 127.0.0.1"
POST = f"POST /generate HTTP/1.1\r\n{HOST}\r\nContent-Type: application/json\r\n"


def connected(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65_536):
        received += part
    return received


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def only_job(url: str) -> dict[str, Any]:
    (job,) = httpx.get(f"{url}/jobs", trust_env=False, verify=False).json()["jobs"]
    return dict(job)


# Half-closed clients


def body(fields: str = "{}", *lines: str) -> bytes:
    head = "".join(f"{line}\r\n" for line in lines)
    return f"{POST}{head}Content-Length: {len(fields)}\r\n\r\n{fields}".encode()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_client_that_closes_its_sending_side_gets_its_answer(version: str, url: str) -> None:
    """uvicorn#1264."""
    with connected(url) as connection:
        connection.sendall(body().replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 202 "), answer


@pytest.mark.parametrize("wait", ["Prefer: wait=30", "Accept: image/png"])
@pytest.mark.parametrize("seconds", [0.2, 2.5])
def test_a_half_closed_client_that_waits_gets_its_answer(wait: str, seconds: float, url: str, fake_worker: Any) -> None:
    with connected(url) as connection:
        connection.sendall(body("{}", wait))
        connection.shutdown(socket.SHUT_WR)
        time.sleep(seconds)
        job = only_job(url)
        assert job["status"] == "queued"
        fake_worker.finish(job["id"], fake_worker.start(job["id"]))
        answer = read_all(connection)
    while answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
        answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert (b"not really" in answer) == wait.startswith("Accept")


def test_a_client_that_closes_both_sides_cancels_its_job(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(body("{}", "Accept: image/png"))
        until(lambda: httpx.get(f"{url}/jobs", trust_env=False, verify=False).json()["jobs"])
    until(lambda: only_job(url)["status"] == "canceled", 8.0)


def test_a_half_closed_listener_gets_all_events(url: str, fake_worker: Any) -> None:
    job_id = fake_worker.create()
    with connected(url) as connection:
        connection.sendall(f"GET /jobs/{job_id}/events HTTP/1.1\r\n{HOST}\r\n\r\n".encode())
        connection.shutdown(socket.SHUT_WR)
        time.sleep(2.5)
        fake_worker.finish(job_id, fake_worker.start(job_id))
        answer = read_all(connection)
    assert b"event: succeeded" in answer
    assert b": ping" in answer, "which finds out whether the client still exists"


def test_a_listener_that_closes_both_sides_is_noticed(url: str, fake_worker: Any) -> None:
    job_id = fake_worker.create()
    with connected(url) as connection:
        connection.sendall(f"GET /jobs/{job_id}/events HTTP/1.1\r\n{HOST}\r\n\r\n".encode())
        assert b"event: queued" in connection.recv(65_536) + connection.recv(65_536)
        assert listeners(url) == 1
    until(lambda: listeners(url) == 0, 8.0)


def test_a_stream_that_sends_little_of_what_happens_notices_a_client_that_is_gone(url: str, fake_worker: Any) -> None:
    """OpenAI's streams have no progress events, and progress is never quiet."""
    fields = '{"prompt": "sneaker", "stream": true}'
    with connected(url) as connection:
        connection.sendall(body(fields).replace(b"/generate", b"/v1/images/generations"))
        assert b"200 OK" in connection.recv(65_536)
    job_id = only_job(url)["id"]
    attempt = fake_worker.start(job_id)
    for number in range(1, 100):
        if fake_worker.store.job(job_id).terminal:
            break
        fake_worker.progress(job_id, attempt, number)
        time.sleep(0.1)
    assert fake_worker.store.job(job_id).status == "canceled"


def listeners(url: str) -> int:
    lines = httpx.get(f"{url}/metrics", trust_env=False, verify=False, timeout=60).text.splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith("denoised_listeners ")]
    return int(float(value))


def test_pipelined_requests_of_a_half_closed_client_are_all_answered(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(f"GET /healthz HTTP/1.1\r\n{HOST}\r\n\r\n".encode() * 3)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).count(b"HTTP/1.1 200 ") == 3


# Clients that send slowly


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(http_protocol, "BODY_SECONDS", 0.5)


@pytest.mark.usefixtures("impatient")
def test_a_websocket_may_last_longer_than_a_request_may_arrive(url: str, fake_worker: Any) -> None:
    """The time limit of the handshake's request ends with the handshake."""
    job_id = fake_worker.create()
    with websockets.sync.client.connect(f"ws{url.removeprefix('http')}/jobs/{job_id}/events", proxy=None) as events:
        assert json.loads(events.recv())["type"] == "queued"
        time.sleep(1.5)
        fake_worker.finish(job_id, fake_worker.start(job_id))
        assert [json.loads(event)["type"] for event in events][-1] == "succeeded"


@pytest.mark.parametrize("sent", [b"G", b"GET /healthz HTTP/1.1\r\n", POST.encode()])
@pytest.mark.usefixtures("impatient")
def test_headers_that_do_not_arrive_are_a_408(sent: bytes, url: str) -> None:
    with connected(url) as connection:
        connection.sendall(sent)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert b"the headers of the request did not arrive within 0.5 s" in answer


@pytest.mark.parametrize("head", ["Content-Length: 100\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"])
@pytest.mark.usefixtures("impatient")
def test_a_body_that_does_not_arrive_is_a_408(head: str, url: str) -> None:
    with connected(url) as connection:
        connection.sendall(f"{POST}{head}".encode())
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.usefixtures("impatient")
def test_a_byte_now_and_then_extends_no_deadline(url: str) -> None:
    with connected(url) as connection:
        connection.settimeout(0.05)
        answer = b""
        for byte in POST.encode():  # for four seconds
            with contextlib.suppress(TimeoutError):
                connection.sendall(bytes([byte]))
                answer += connection.recv(65_536)
            if answer:
                break
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("impatient")
def test_a_connection_without_a_request_is_closed_silently(url: str) -> None:
    with connected(url) as connection:
        assert read_all(connection) == b""


@pytest.mark.usefixtures("impatient")
def test_a_second_request_has_a_deadline_of_its_own(url: str, fake_worker: Any) -> None:
    with connected(url) as connection:
        for _ in range(2):
            connection.sendall(f"GET /healthz HTTP/1.1\r\n{HOST}\r\n\r\n".encode())
            assert b'"ok"' in connection.recv(65_536)
            time.sleep(0.8)
        connection.sendall(b"GET /he")
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("impatient")
def test_waiting_for_a_job_is_not_limited_by_the_deadlines_of_a_request(url: str, fake_worker: Any) -> None:
    ending = threading.Timer(
        1.5, lambda: fake_worker.finish(only_job(url)["id"], fake_worker.start(only_job(url)["id"]))
    )
    ending.start()
    answer = httpx.post(
        f"{url}/generate", json={}, headers={"Prefer": "wait=30"}, trust_env=False, verify=False, timeout=30
    )
    ending.join()
    assert answer.json()["status"] == "succeeded"


def test_a_half_sent_request_does_not_delay_a_shutdown(run_server: Callable[..., Any]) -> None:
    with ExitStack() as stack, run_server(timeout_graceful_shutdown=60) as url:
        slow = stack.enter_context(connected(url))
        slow.sendall(f"{POST}Content-Length: 100\r\n\r\n".encode())
        time.sleep(0.3)
        started = time.monotonic()
    assert time.monotonic() - started < 30, "less than the time of a graceful shutdown"


# Requests that are too large

TOO_LARGE = [
    (f"GET /{'x' * 9000} HTTP/1.1\r\n{HOST}\r\n\r\n", 414),
    (f"GET /models?{'x' * 9000} HTTP/1.1\r\n{HOST}\r\n\r\n", 414),
    (f"GET /models HTTP/1.1\r\n{HOST}\r\nX: {'x' * 40_000}\r\n\r\n", 431),
    (f"GET /models HTTP/1.1\r\n{HOST}\r\n" + "X: y\r\n" * 200 + "\r\n", 431),
    (f"GET /models HTTP/1.1\r\n{HOST}\r\nX: {'x' * 200_000}", 431),
    (
        f"GET /generate HTTP/1.1\r\n{HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX: {'x' * 40_000}\r\n\r\n",
        431,
    ),
]


@pytest.mark.parametrize(("sent", "status"), TOO_LARGE, ids=range(len(TOO_LARGE)))
def test_a_request_with_a_large_head_is_refused(sent: str, status: int, url: str) -> None:
    with connected(url) as connection:
        connection.sendall(sent.encode())
        answer = read_all(connection)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:300]
    assert b"application/problem+json" in answer


HANDSHAKE = (
    f"GET /generate HTTP/1.1\r\n{HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
NO_HANDSHAKES = [
    (f"{HANDSHAKE}Cookie: {'x' * 8200}\r\n\r\n", 431),
    (f"{HANDSHAKE}Sec-WebSocket-Extensions: {'permessage-deflate; ' * 500}\r\n\r\n", 431),
    (HANDSHAKE.replace("GET /generate", f"GET /generate?x={'y' * 8180}") + "\r\n", 414),
    (HANDSHAKE.replace("GET", "POST") + "Content-Length: 0\r\n\r\n", 405),
    (HANDSHAKE.replace("GET", "get") + "\r\n", 405),
]


@pytest.mark.parametrize(("sent", "status"), NO_HANDSHAKES, ids=range(len(NO_HANDSHAKES)))
def test_a_request_that_is_no_handshake_is_answered_and_not_kept(sent: str, status: int, url: str) -> None:
    """`websockets` refuses it, and uvicorn sent nothing: the client waited forever."""
    with connected(url) as connection:
        connection.sendall(sent.encode())
        answer = read_all(connection)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:300]
    assert b"application/problem+json" in answer


def test_a_body_in_tiny_chunks_is_refused(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode() + b"1\r\n \r\n" * 2000)
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")
    with connected(url) as connection:
        parts = b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"n":1}' + b" " * 500)
        connection.sendall(f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode() + parts + b"0\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 202 ")


# Too many connections


@pytest.fixture
def limited(start_server: Callable[..., str], fake_worker: Any) -> str:
    """A server for ten connections."""
    fake_worker.serve()
    return start_server(limit=ConnectionLimit(10))


def test_idle_connections_make_room_for_requests(limited: str, caplog: pytest.LogCaptureFixture) -> None:
    """1,100 idle connections locked everybody out of an API with 1,024 files."""
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(limited)) for _ in range(60)]
        for _ in range(5):
            assert httpx.get(f"{limited}/models", trust_env=False, verify=False).status_code == 200
        idle[0].setblocking(False)
        assert idle[0].recv(1) == b"", "the oldest was closed"
    records = [record for record in caplog.records if record.message == "too many connections"]
    assert len(records) == 1, "once, not for each of them"
    assert records[0].limit == 10  # type: ignore[attr-defined]


def test_half_sent_requests_make_room_for_requests(limited: str) -> None:
    with ExitStack() as stack:
        for k in range(60):
            slow = stack.enter_context(connected(limited))
            slow.sendall((f"{POST}Content-Length: 100\r\n\r\n" if k % 2 else POST).encode())
        assert httpx.get(f"{limited}/models", trust_env=False, verify=False).status_code == 200


def test_over_the_limit_only_the_health_is_told(limited: str, fake_worker: Any) -> None:
    job_id = fake_worker.create()
    with ExitStack() as stack:
        for _ in range(10):
            listener = stack.enter_context(connected(limited))
            listener.sendall(f"GET /jobs/{job_id}/events HTTP/1.1\r\n{HOST}\r\n\r\n".encode())
            assert listener.recv(10)
        for path in ("/healthz", "/readyz"):
            assert httpx.get(limited + path, trust_env=False, verify=False).status_code == 200
        refused = httpx.get(f"{limited}/models", trust_env=False, verify=False)
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["retry-after"]
        assert "too many connections" in refused.json()["detail"]
        more = [stack.enter_context(connected(limited)) for _ in range(RESERVED_FOR_HEALTH + 5)]
        assert httpx.get(f"{limited}/healthz", trust_env=False, verify=False).status_code == 200
        assert more
    until(lambda: httpx.get(f"{limited}/models", trust_env=False, verify=False).status_code == 200)


# Streams


def test_each_key_may_open_so_many_streams(start_server: Callable[..., str], fake_worker: Any) -> None:
    fake_worker.serve()
    url = start_server(keys=("one", "two"), max_streams_per_key=3)
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    with ExitStack() as stack, httpx.Client(base_url=url, trust_env=False, verify=False, timeout=30) as client:
        job = client.post("/generate", json={}, headers=one).json()["links"]["events"]
        for _ in range(3):
            stack.enter_context(client.stream("GET", job, headers=one))
        refused = client.get(job, headers=one)
        assert refused.status_code == 429
        assert "3 event streams and waiting requests of this key are open (allowed: 3)" in refused.json()["detail"]
        assert refused.headers["retry-after"]
        for headers in ({"Prefer": "wait=1"}, {"Accept": "image/png"}):
            assert client.post("/generate", json={}, headers={**one, **headers}).status_code == 429
        assert client.post("/v1/images/generations", json={"prompt": "sneaker"}, headers=one).status_code == 429
        assert client.post("/generate", json={}, headers=one).status_code == 202, "without waiting"
        assert client.post("/generate", json={}, headers={**two, "Prefer": "wait=0"}).status_code == 202
        metrics = client.get("/metrics", headers=one).text
        assert 'denoised_refusals_total{limit="streams_per_key"} 4.0' in metrics
    with httpx.Client(base_url=url, trust_env=False, verify=False, timeout=30) as client:
        until(lambda: client.post("/generate", json={}, headers={**one, "Prefer": "wait=0"}).status_code == 202)


def test_a_client_that_reads_nothing_is_dropped(
    start_server: Callable[..., str], fake_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "STALLED_SECONDS", 0.5)
    fake_worker.serve()
    url = start_server()
    job_id = with_frames(fake_worker)
    with ExitStack() as stack:
        stuck = [stack.enter_context(stuck_listener(url, job_id)) for _ in range(3)]
        until(lambda: listeners(url) == 3)
        until(lambda: listeners(url) == 0)
        assert stuck
    answer = httpx.get(f"{url}/jobs/{job_id}/events", trust_env=False, verify=False, headers={"Last-Event-ID": "60"})
    assert "event: frame" in answer.text, "others still get everything"


def with_frames(fake_worker: Any, size: int = 200_000, count: int = 60) -> str:
    """A job with large frames that has ended."""
    job_id: str = fake_worker.create()
    attempt = fake_worker.start(job_id)
    data = base64.b64encode(os.urandom(size * 3 // 4)).decode()
    for step in range(count):
        frame = {"type": "frame", "image": 0, "step": step, "steps": count, "kind": "x0", "data": data}
        fake_worker.progress(job_id, attempt, step + 1, frame)
    fake_worker.finish(job_id, attempt)
    return job_id


def stuck_listener(url: str, job_id: str) -> socket.socket:
    """A client that asks for events and never reads."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    connection.sendall(f"GET /jobs/{job_id}/events HTTP/1.1\r\n{HOST}\r\n\r\n".encode())
    return connection


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
def test_five_hundred_listeners_that_stand_still_cost_little_memory(
    start_server: Callable[..., str], fake_worker: Any
) -> None:
    """They cost 352 MiB."""
    fake_worker.serve()
    url = start_server()
    jobs = [with_frames(fake_worker, size=20_000, count=100) for _ in range(50)]
    before = resident()
    with ExitStack() as stack:
        for k in range(500):
            stack.enter_context(stuck_listener(url, jobs[k % len(jobs)]))
        until(lambda: listeners(url) == 500, 180.0)
        time.sleep(3.0)
        used = resident() - before
    print(json.dumps({"mib": round(used, 1)}))  # noqa: T201
    assert used < 150
