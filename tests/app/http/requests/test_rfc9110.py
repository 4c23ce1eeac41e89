"""HTTP as RFC 9110 describes it: fields in several lines, media types, codings and query parameters."""

from __future__ import annotations

import http.client
import socket
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

from denoised.app.http.requests.negotiation import Preference

JSON = {"Content-Type": "application/json"}


def check_problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    return found


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def sent(url: str, method: str, path: str, *lines: tuple[str, str], body: bytes = b"{}") -> tuple[int, Any, str]:
    """Status, headers and text of the response to a request with exactly these header lines."""
    connection = http.client.HTTPConnection(*address(url), timeout=30)
    connection.putrequest(method, path)
    for name, value in lines:
        connection.putheader(name, value)
    if method == "POST":
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body if method == "POST" else None)
    answer = connection.getresponse()
    text = answer.read().decode("latin-1")
    connection.close()
    return answer.status, answer.headers, text


def test_the_lines_of_a_list_are_read_as_one_list(url: str, fake_worker: Any) -> None:
    """LinuxForHealth/FHIR#3318."""
    json = ("Content-Type", "application/json")
    _, headers, _ = sent(url, "POST", "/generate", json, ("Prefer", "respond-async"), ("Prefer", "wait=0"))
    assert headers["preference-applied"] == "wait=0"
    accept = (("Accept", "image/png;q=0"), ("Accept", "image/webp"))
    status, _, text = sent(url, "POST", "/generate", json, *accept, body=b'{"format": "jpeg"}')
    assert status == 422
    assert "image/webp" in text
    path = f"/jobs/{fake_worker.succeeded()}/images/0"
    etag = httpx.get(url + path, trust_env=False, verify=False).headers["etag"]
    assert sent(url, "GET", path, ("If-None-Match", '"other"'), ("If-None-Match", etag))[0] == 304


@pytest.mark.parametrize("name", ["Idempotency-Key", "Content-Type", "Last-Event-ID", "Authorization"])
def test_a_single_value_given_twice_is_refused_unless_it_is_the_same(name: str, url: str) -> None:
    json = ("Content-Type", "application/json")
    status, _, text = sent(url, "POST", "/generate", json, (name, "application/json"), (name, "other"))
    assert status == 400
    assert name.lower() in text
    assert sent(url, "POST", "/generate", json, (name, "application/json"), (name, "application/json"))[0] == 202


@pytest.mark.parametrize(
    "accept", ["image/avif", "text/html", "image/gif, text/plain", "image/png;q=0", "application/json;q=0", "*/*;q=0"]
)
def test_an_accept_that_nothing_satisfies_is_a_406_and_creates_no_job(accept: str, api: TestClient) -> None:
    found = check_problem(api.post("/generate", json={}, headers={"Accept": accept}), 406)
    assert "application/json, image/png, image/webp, image/jpeg" in found["detail"]
    assert api.get("/jobs").json()["jobs"] == []


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        ("", True),
        ("*/*", True),
        ("application/*", True),
        ("text/html, */*;q=0.1", True),
        ("application/json;q=0, */*", False),
        ("*/*;q=0, application/json", True),
        ("Application/JSON", True),
        (",,;;q=,", True),
    ],
)
def test_the_most_specific_range_decides(accept: str, json: bool) -> None:
    assert Preference.parse({"accept": accept}, 60.0).json is json


@pytest.mark.parametrize("path", ["/models", "/jobs", "/healthz", "/workers", "/metrics"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_response_of_an_excluded_type_is_a_406(method: str, path: str, api: TestClient) -> None:
    assert api.request(method, path, headers={"Accept": "image/avif"}).status_code == 406
    accept = "text/plain" if path == "/metrics" else "application/json"
    assert api.request(method, path, headers={"Accept": accept}).status_code == 200


def test_an_event_stream_is_sent_only_to_clients_that_accept_it(api: TestClient, fake_worker: Any) -> None:
    path = f"/jobs/{fake_worker.succeeded()}/events"
    check_problem(api.get(path, headers={"Accept": "application/json"}), 406)
    for accept in ("text/event-stream", "text/*", "*/*", ""):
        assert api.get(path, headers={"Accept": accept}).status_code == 200


def test_an_excluded_type_prevents_the_effect_of_a_post(api: TestClient) -> None:
    check_problem(api.post("/tickets", headers={"Accept": "text/html"}), 406)
    headers = {"Accept": "text/html", "Content-Type": "image/png"}
    check_problem(api.post("/verify", content=b"?", headers=headers), 406)


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "GZIP", "x-unknown"])
def test_a_content_coding_is_a_415_that_names_what_is_supported(coding: str, api: TestClient) -> None:
    answer = api.post("/generate", content=b"\x1f\x8b", headers={**JSON, "Content-Encoding": coding})
    assert coding in check_problem(answer, 415)["detail"]
    assert answer.headers["accept-encoding"] == "identity"
    assert api.post("/generate", content=b"{}", headers={**JSON, "Content-Encoding": "identity"}).status_code == 202


@pytest.mark.parametrize("last", ["", "abc", "-1", "1.5", "٣", "5-0", "f3c1 d", "9" * 200])
def test_a_foreign_last_event_id_starts_the_stream_from_the_beginning(
    last: str, api: TestClient, fake_worker: Any
) -> None:
    """A 422 would end a browser's EventSource for good."""
    answer = api.get(f"/jobs/{fake_worker.succeeded()}/events", headers={"Last-Event-ID": last.encode()})
    assert answer.status_code == 200
    assert "\nid: 1\n" in answer.text


UNKNOWN = ["/models?limit=1", "/jobs?limt=5", "/jobs?limit=5&x=", "/workers?a=1", "/metrics?a=1", "/v1/models?a=1"]


@pytest.mark.parametrize("path", UNKNOWN)
def test_an_unknown_query_parameter_is_named(path: str, api: TestClient) -> None:
    answer = api.get(path)
    assert answer.status_code == (400 if path.startswith("/v1") else 422)
    assert "is not a query parameter here" in answer.text


def test_an_unknown_query_parameter_of_other_routes_is_named(api: TestClient, fake_worker: Any) -> None:
    assert "limit" in check_problem(api.get("/jobs?limt=5"), 422)["detail"]
    found = check_problem(api.get("/jobs?limit=5&limit=6"), 422)
    assert found["errors"] == [{"field": "limit", "message": "was given 2 times (allowed: once)"}]
    job_id = fake_worker.succeeded()
    for path in ("", "/events", "/images/0", "/animation"):
        assert api.get(f"/jobs/nobody{path}?a=1").status_code == 404
        assert "a: is not a query parameter" in check_problem(api.get(f"/jobs/{job_id}{path}?a=1"), 422)["detail"]
    check_problem(api.post("/generate?steps=5", json={}), 422)
    check_problem(api.delete(f"/jobs/{job_id}?force=1"), 422)
    for path in ("/?from=mail", "/healthz?probe=1", "/readyz?x", "/docs?x=1"):
        assert api.get(path).status_code == 200


def test_a_socket_takes_only_its_query_parameters(api: TestClient, fake_worker: Any) -> None:
    path = f"ws://127.0.0.1:8000/jobs/{fake_worker.succeeded()}/events"
    with pytest.raises(WebSocketDenialResponse) as refused, api.websocket_connect(f"{path}?affter=5"):
        pass
    assert refused.value.status_code == 422
    with api.websocket_connect(f"{path}?after=2&ticket=x") as listener:
        assert listener.receive_json()["seq"] == 3
        while listener.receive()["type"] != "websocket.close":
            pass  # leaving earlier would cancel the app's task, which may end at the same moment


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/files", "/nothing", "/jobs/a/b/c/d"])
def test_an_unknown_route_is_a_404_whatever_its_body(path: str, api: TestClient) -> None:
    answer = api.post(path, files={"image": b"?"})
    assert answer.status_code == 404
    if path.startswith("/v1"):
        assert answer.json()["error"]["code"] == "not_found"
    assert api.put("/jobs", files={"image": b"?"}).status_code == 405


@pytest.mark.parametrize("version", ["8", "0", "14", "13, 8", ""])
def test_another_version_of_websocket_is_a_426_that_names_13(version: str, url: str) -> None:
    """RFC 6455, 4.4."""
    lines = [
        "GET /generate HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"Sec-WebSocket-Version: {version}",
    ]
    with socket.create_connection(address(url), timeout=30) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = b""
        while part := connection.recv(65_536):
            head += part
    assert head.startswith(b"HTTP/1.1 426 "), head
    assert b"\r\nsec-websocket-version: 13\r\n" in head.lower()
    assert b"application/problem+json" in head


def raw(url: str, text: str) -> str:
    """The response to exactly these bytes."""
    with socket.create_connection(address(url), 30) as connection:
        connection.sendall(text.encode())
        parts = []
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts).decode()


CLOSE = "Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("GET http://localhost/models HTTP/1.1\r\nHost: evil.example\r\n", 200),
        ("GET HTTP://127.0.0.1:80/healthz HTTP/1.1\r\nHost: x\r\n", 200),
        ("GET http://localhost?a=1 HTTP/1.1\r\nHost: localhost\r\n", 200),
        ("GET http://evil.example/models HTTP/1.1\r\nHost: localhost\r\n", 403),
        ("GET http://localhost.evil.example/models HTTP/1.1\r\nHost: localhost\r\n", 403),
        ("GET http://user@localhost/models HTTP/1.1\r\nHost: localhost\r\n", 400),
        ("GET http:///models HTTP/1.1\r\nHost: localhost\r\n", 400),
        ("GET ftp://localhost/models HTTP/1.1\r\nHost: localhost\r\n", 404),
        ("\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n", 200),
        ("GET /models HTTP/1.0\r\n", 200),
        ("GET /models HTTP/1.0\r\nHost:\r\n", 403),
        ("GET /models HTTP/1.1\r\n", 400),
        ("nonsense\r\n", 400),
    ],
)
def test_a_target_names_the_host_itself_or_the_host_field_does(text: str, status: int, url: str) -> None:
    """RFC 9112, 3.2.2: a server accepts the absolute form, and its authority replaces the Host."""
    answer = raw(url, text + CLOSE)
    assert answer.startswith(f"HTTP/1.1 {status} "), answer[:300]
    assert "bytearray" not in answer
