"""One vocabulary of events over two transports: SSE and WebSocket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from denoised.app.http.schemas import JobObject

LOCAL = "ws://127.0.0.1:8000"


def parsed(stream: str) -> list[dict[str, Any]]:
    """The events of an SSE stream; checks that their id and event lines are consistent."""
    found = []
    for block in stream.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in lines:
            event = json.loads(lines["data"])
            assert (lines["id"], lines["event"]) == (str(event["seq"]), event["type"])
            found.append(event)
    return found


def seqs(stream: str) -> list[int]:
    return [event["seq"] for event in parsed(stream)]


@pytest.fixture
def done(fake_worker: Any) -> str:
    """A succeeded job with two progress events and a frame: seven events."""
    job_id: str = fake_worker.create()
    attempt = fake_worker.start(job_id)
    frame = {"image": 0, "step": 2, "steps": 20, "t": 1.0, "sigma": 0.5, "kind": "x0", "media_type": "image/png"}
    fake_worker.progress(job_id, attempt, 1)
    fake_worker.progress(
        job_id, attempt, 2, {"type": "progress", "step": 2}, {"type": "frame", **frame, "data": "AA=="}
    )
    fake_worker.finish(job_id, attempt)
    return job_id


def test_a_stream_has_all_events_of_a_job(api: TestClient, done: str) -> None:
    answer = api.get(f"/jobs/{done}/events", headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    events = parsed(answer.text)
    kinds = ["queued", "started", "progress", "progress", "frame", "image", "succeeded"]
    assert [event["type"] for event in events] == kinds
    assert [event["seq"] for event in events] == list(range(1, 8))
    assert {(event["job"], event["attempt"]) for event in events} == {(done, 1)}
    assert JobObject.model_validate(events[-1]["result"], strict=True).status == "succeeded"
    assert events[-1]["result"] == api.get(f"/jobs/{done}").json()


def test_a_reconnecting_listener_gets_what_it_missed(api: TestClient, done: str) -> None:
    path = f"/jobs/{done}/events"
    assert seqs(api.get(path, headers={"Last-Event-ID": "4"}).text) == [5, 6, 7]
    assert seqs(api.get(path, params={"after": 6}).text) == [7]
    assert seqs(api.get(path, params={"after": 1}, headers={"Last-Event-ID": "5"}).text) == [6, 7]


@pytest.mark.parametrize("seq", [7, 8, 10**15, 10**30])
def test_a_stream_after_the_last_event_is_a_204(seq: int, api: TestClient, done: str) -> None:
    """204 tells a browser's EventSource to stop (HTML standard, 9.2.3)."""
    answer = api.get(f"/jobs/{done}/events", headers={"Last-Event-ID": str(seq)})
    assert (answer.status_code, answer.content) == (204, b"")


def test_the_stream_of_a_canceled_job_ends_with_canceled(api: TestClient) -> None:
    job_id = api.post("/generate", json={}).json()["id"]
    api.delete(f"/jobs/{job_id}")
    events = parsed(api.get(f"/jobs/{job_id}/events").text)
    assert [event["type"] for event in events] == ["queued", "canceled"]
    assert events[-1]["result"]["status"] == "canceled"


def test_a_socket_sends_the_same_events_as_a_stream(api: TestClient, done: str) -> None:
    streamed = parsed(api.get(f"/jobs/{done}/events").text)
    with api.websocket_connect(f"{LOCAL}/jobs/{done}/events") as socket:
        assert [socket.receive_json() for _ in streamed] == streamed
        with pytest.raises(WebSocketDisconnect) as closing:
            socket.receive_json()
        assert closing.value.code == 1000


def test_a_socket_continues_after_a_seq(api: TestClient, done: str) -> None:
    with api.websocket_connect(f"{LOCAL}/jobs/{done}/events?after=5") as socket:
        assert [socket.receive_json()["seq"] for _ in range(2)] == [6, 7]


@pytest.mark.parametrize("after", [7, 8, 10**15])
def test_a_socket_after_the_end_closes_at_once(after: int, api: TestClient, done: str) -> None:
    with api.websocket_connect(f"{LOCAL}/jobs/{done}/events?after={after}") as socket:
        with pytest.raises(WebSocketDisconnect) as closing:
            socket.receive_json()
        assert closing.value.code == 1000


def test_a_socket_sends_live_events(api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.create()
    with api.websocket_connect(f"{LOCAL}/jobs/{job_id}/events") as socket:
        assert socket.receive_json()["type"] == "queued"
        attempt = fake_worker.start(job_id)
        assert socket.receive_json()["type"] == "started"
        fake_worker.progress(job_id, attempt, 1)
        assert socket.receive_json()["step"] == 1
        fake_worker.finish(job_id, attempt)
        assert [socket.receive_json()["type"] for _ in range(2)] == ["image", "succeeded"]


def test_one_socket_submits_a_job_and_receives_its_events(api: TestClient, fake_worker: Any) -> None:
    with api.websocket_connect(f"{LOCAL}/generate") as socket:
        socket.send_json({"label": "sneaker", "seed": 3})
        queued = socket.receive_json()
        assert queued["type"] == "queued"
        job = api.get(f"/jobs/{queued['job']}").json()
        assert (job["seed"], job["label"]) == (3, "sneaker")
        fake_worker.finish(job["id"], fake_worker.start(job["id"]))
        assert [socket.receive_json()["type"] for _ in range(3)] == ["started", "image", "succeeded"]
        with pytest.raises(WebSocketDisconnect) as closing:
            socket.receive_json()
        assert closing.value.code == 1000


FIRST = ['{"n": 0}', "{", "NaN", "[]", '{"eta": NaN}', '{"label": "\\ud800"}', "[" * 100_000, '{"model": "hats"}']


@pytest.mark.parametrize("text", FIRST, ids=[text[:20] for text in FIRST])
def test_an_invalid_request_over_a_socket_is_answered_with_its_problem(text: str, api: TestClient) -> None:
    with api.websocket_connect(f"{LOCAL}/generate") as socket:
        socket.send_text(text)
        assert socket.receive_json()["status"] == 422
        with pytest.raises(WebSocketDisconnect) as closing:
            socket.receive_json()
        assert closing.value.code == 1008


def test_a_binary_first_message_is_refused(api: TestClient) -> None:
    with api.websocket_connect(f"{LOCAL}/generate") as socket:
        socket.send_bytes(b"{}")
        assert socket.receive_json()["status"] == 422


def test_a_socket_that_closes_before_its_request_creates_no_job(api: TestClient) -> None:
    with api.websocket_connect(f"{LOCAL}/generate"):
        pass
    assert api.get("/jobs").json()["jobs"] == []
