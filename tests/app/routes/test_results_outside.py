"""Results in Redis, in a folder and in a bucket: over every route and transport, clients get the same."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from PIL import Image
from starlette.testclient import TestClient

from denoised.app.http.api_keys import KeyRing
from denoised.jobs.results.result_store import ResultStore
from denoised.jobs.results.settings import ResultSettings
from denoised.jobs.store.store import Store
from denoised.jobs.store.update import JobUpdate

Outside = Callable[..., tuple[TestClient, Any]]
PLACES = ("redis", "file", "s3")
TRANSPORTS = ("sse", "sse after", "sse last-event-id", "websocket", "websocket after")
LOCAL = "ws://127.0.0.1:8000"
ALICE, BOB = "alices-key-of-22-bytes", "bobs-key-of-twenty-bytes"


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (28, 28), shade).save(out, "png")
    return out.getvalue()


def frame(step: int) -> dict[str, Any]:
    picture = {"kind": "x0", "media_type": "image/png", "data": base64.b64encode(png(step)).decode()}
    return {"type": "frame", "image": 0, "step": step, "steps": 20, "t": 1.0, "sigma": 0.5, **picture}


@pytest.fixture
def settings_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., ResultSettings]:
    """`settings_of(place, **settings)`"""

    def settings_of(place: str, **settings: Any) -> ResultSettings:
        urls = {"redis": lambda: None, "file": lambda: f"file://{tmp_path}/results"}
        urls["s3"] = lambda: request.getfixturevalue("s3_url")
        return ResultSettings(urls[place](), **settings)

    return settings_of


@pytest.fixture
def outside(
    settings_of: Callable[..., ResultSettings],
    make_client: Callable[..., TestClient],
    client: redis.Redis,
    fake_worker: Any,
) -> Outside:
    """`outside(place, keys=…, **settings)`: a client of an app whose results lie there, and a worker that writes it."""

    def outside(place: str, keys: tuple[str, ...] = (), **settings: Any) -> tuple[TestClient, Any]:
        results = settings_of(place, **settings)
        if results.url is not None:
            fake_worker.store = Store(client, 86_400, results, ResultStore(results.url, 5.0))
        fake_worker.serve()
        return make_client(keys=keys, results=results), fake_worker

    return outside


def done(worker: Any, **fields: Any) -> str:
    """A succeeded job with three frames, the second step's in one update with the third's: nine events."""
    job_id: str = worker.create(job_id="the0job", at=1.0, preview_every=1, **fields)
    attempt = worker.start(job_id)
    worker.progress(job_id, attempt, 1, {"type": "progress", "step": 1}, frame(1))
    worker.progress(job_id, attempt, 2, {"type": "progress", "step": 3}, frame(2), frame(3))
    worker.finish(job_id, attempt, data=png(200))
    return job_id


def listen(api: TestClient, job_id: str, transport: str) -> list[dict[str, Any]]:
    path = f"/jobs/{job_id}/events"
    if transport.startswith("websocket"):
        after = "?after=4" if transport.endswith("after") else ""
        events = []
        with api.websocket_connect(f"{LOCAL}{path}{after}") as socket:
            while not events or events[-1]["type"] != "succeeded":
                events.append(socket.receive_json())
        return events
    headers = {"Last-Event-ID": "4"} if transport.endswith("id") else {}
    answer = api.get(path, params={"after": 4} if transport.endswith("after") else {}, headers=headers)
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]


def timeless(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without what differs between two runs of the test."""
    for event in events:
        event.pop("result", None)
    return events


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_listener_gets_the_same_events(place: str, transport: str, outside: Outside) -> None:
    api, worker = outside(place)
    events = timeless(listen(api, done(worker), transport))
    kinds = ["queued", "started", "progress", "frame", "progress", "frame", "frame", "image", "succeeded"]
    after = 4 if " " in transport else 0
    assert [event["type"] for event in events] == kinds[after:]
    assert [event["seq"] for event in events] == list(range(1, 10))[after:]
    frames = [event for event in events if event["type"] == "frame"]
    assert (
        frames
        == [{"seq": seq, "job": "the0job", "attempt": 1, **frame(step)} for seq, step in ((4, 1), (6, 2), (7, 3))][
            after // 4 :
        ]
    )


@pytest.mark.parametrize("place", PLACES)
def test_a_picture_is_sent_with_its_etag(place: str, outside: Outside) -> None:
    api, worker = outside(place)
    path = f"/jobs/{done(worker)}/images/0"
    answer = api.get(path)
    assert (answer.status_code, answer.content) == (200, png(200))
    etag = answer.headers["etag"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = api.get(path, headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    head = api.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(png(200))))
    whole = api.get(path, headers={"Range": "bytes=0-3"})
    assert (whole.status_code, whole.content) == (200, png(200))
    assert api.get("/jobs/the0job/images/1").status_code == 404


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("query", ["format=webp", "format=gif&kind=x0", "format=apng&sheet=1"])
def test_an_animation_shows_all_frames(query: str, place: str, outside: Outside) -> None:
    api, worker = outside(place)
    answer = api.get(f"/jobs/{done(worker)}/animation?{query}")
    assert answer.status_code == 200
    shown = Image.open(io.BytesIO(answer.content))
    assert shown.n_frames == (4 if "sheet" in query else 3)  # type: ignore[attr-defined]
    shown.seek(1)
    assert abs(shown.convert("L").getpixel((shown.width // 2, shown.height // 2)) - 2) < 2  # type: ignore[operator]


@pytest.mark.parametrize("place", PLACES)
def test_arrays_are_sent(place: str, outside: Outside) -> None:
    api, worker = outside(place)
    job_id = worker.create(task="noise", t=500)
    attempt = worker.start(job_id)
    array = [{"index": 0, "name": "x_t", "shape": [1, 1, 2], "sha256": "0" * 64}]
    update = JobUpdate(job_id, attempt, 1, fields={"arrays": json.dumps(array)}, arrays={(0, "x_t"): b"numbers"})
    assert worker.store.write(update)
    answer = api.get(f"/jobs/{job_id}/images/0/x_t.npy")
    assert (answer.status_code, answer.content) == (200, b"numbers"), answer.text


@pytest.mark.parametrize("place", PLACES)
def test_the_progress_of_the_other_api_has_the_newest_frame(place: str, outside: Outside) -> None:
    api, worker = outside(place)
    job_id = worker.create(preview_every=1)
    worker.client.hset(f"denoised:job:{job_id}", "api", "a1111")
    attempt = worker.start(job_id)
    for step in (1, 2):
        worker.progress(job_id, attempt, step, frame(step))
    assert base64.b64decode(api.get("/sdapi/v1/progress").json()["current_image"]) == png(2)


@pytest.mark.parametrize("place", PLACES)
def test_another_key_finds_nothing(place: str, outside: Outside) -> None:
    api, worker = outside(place, keys=(ALICE, BOB), link_seconds=60)
    job_id = done(worker, owner=next(iter(KeyRing.from_keys([ALICE]).names.values())))
    bob = {"Authorization": f"Bearer {BOB}"}
    paths = [f"/jobs/{job_id}", *(f"/jobs/{job_id}/{name}" for name in ("images/0", "events", "animation"))]
    for path in paths:
        assert api.get(path, headers=bob).status_code == 404
        assert api.get(path, follow_redirects=False).status_code in (200, 307)


@pytest.mark.parametrize("place", ["file", "s3"])
def test_a_place_that_refuses_is_a_503_and_the_events_go_on_without_frames(
    place: str, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, worker = outside(place)
    job_id = done(worker)
    services = api.app.state.services  # type: ignore[attr-defined]

    def read(*arguments: Any, **options: Any) -> bytes:
        raise ConnectionError("the network is down")

    monkeypatch.setattr(services.store.results.store._fs, "cat_file", read)
    answer = api.get(f"/jobs/{job_id}/images/0")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["detail"].startswith("the result store does not answer")
    events = listen(api, job_id, "sse")
    assert [event["seq"] for event in events] == [1, 2, 3, 5, 8, 9]
    assert api.get(f"/jobs/{job_id}").json()["status"] == "succeeded"
    assert api.get(f"/jobs/{job_id}/animation").status_code == 409
    monkeypatch.undo()
    services.store.results.store._open_until = 0.0
    assert api.get(f"/jobs/{job_id}/images/0").status_code == 200
    assert len(listen(api, job_id, "sse")) == 9


def test_a_picture_in_a_bucket_is_redirected_to_if_asked_for(outside: Outside) -> None:
    api, worker = outside("s3", link_seconds=60)
    path = f"/jobs/{done(worker)}/images/0"
    answer = api.get(path, follow_redirects=False)
    assert answer.status_code == 307
    assert answer.headers["cache-control"] == "private, no-store"
    linked = httpx.get(answer.headers["location"], trust_env=False)
    assert (linked.content, linked.headers["content-type"]) == (png(200), "image/png")
    assert api.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert api.get("/jobs/the0job/images/1").status_code == 404


def test_a_job_whose_pictures_have_no_room_is_refused(outside: Outside) -> None:
    api, _ = outside("file", max_picture_bytes=5000)
    assert api.post("/generate", json={}).status_code == 202
    answer = api.post("/generate", json={"n": 2})
    assert answer.status_code == 507
    assert answer.json()["detail"] == ("the result store is full; nothing was accepted, jobs accepted earlier continue")


def test_a_job_with_frames_outside_redis_needs_little_of_its_memory(outside: Outside, fake_worker: Any) -> None:
    reserved = {}
    for place in ("redis", "file"):
        api, worker = outside(place)
        job_id = api.post("/generate", json={"n": 16, "steps": 50, "preview_every": 1}).json()["id"]
        reserved[place] = worker.store.job(job_id).reserved_bytes
    assert reserved["redis"] > 1_000_000
    assert reserved["file"] < reserved["redis"] * 0.65
