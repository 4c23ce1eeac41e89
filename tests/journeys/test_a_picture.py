"""HTTP → queue → worker → picture, on the bundled model, as a user's programs would."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
import websockets
from PIL import Image

from denoised.app.http.schemas import JobObject
from tests.journeys.conftest import GARMENTS

REQUEST = {"model": "fashion-mnist", "label": "sneaker", "seed": 7, "steps": 6}


def _pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data))).astype(float)


def test_a_post_is_accepted_and_becomes_a_picture(service: Any) -> None:
    with service.client() as client:
        accepted = client.post("/generate", json={**REQUEST, "n": 3})
        assert accepted.status_code == 202
        job = accepted.json()
        assert accepted.headers["location"] == f"/jobs/{job['id']}" == job["links"]["self"]
        assert job["status"] == "queued"
        done = _finished(client, job["id"])
        assert done["status"] == "succeeded"
        assert done["progress"] == {"step": 6, "steps": 6, "fraction": 1.0}
        assert done["timing"]["evaluations"] == 3 * (6 + 2)  # two of six levels are guided
        JobObject.model_validate(done)
        assert [image["seed"] for image in done["images"]] == [7, 8, 9]
        for image in done["images"]:
            answer = client.get(image["url"])
            assert answer.headers["content-type"] == "image/png"
            assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"' == f'"{image["sha256"]}"'
            assert _pixels(answer.content).shape == (28, 28)


def test_image_k_of_a_job_is_the_picture_of_seed_plus_k(service: Any) -> None:
    with service.client() as client:
        many = _finished(client, client.post("/generate", json={**REQUEST, "n": 2, "preview_every": 2}).json()["id"])
        alone = client.post("/generate", json={**REQUEST, "seed": 8}, headers={"Accept": "image/png"})
        assert alone.headers["x-seed"] == "8"
        assert hashlib.sha256(alone.content).hexdigest() == many["images"][1]["sha256"]


def test_a_picture_tells_the_request_that_makes_it_again(service: Any) -> None:
    with service.client() as client:
        first = client.post("/generate", json=REQUEST, headers={"Accept": "image/png"}).content
        parameters = json.loads(Image.open(io.BytesIO(first)).text["parameters"])
        numerics = parameters.pop("numerics")
        assert numerics == next(
            model["numerics"] for model in client.get("/models").json() if model["name"] == REQUEST["model"]
        )
        again = client.post("/generate", json=parameters, headers={"Accept": "image/png"}).content
        assert again == first


@pytest.mark.parametrize(("format", "magic"), [("png", b"\x89PNG"), ("webp", b"RIFF"), ("jpeg", b"\xff\xd8\xff")])
def test_accept_decides_the_format_of_the_picture(service: Any, format: str, magic: bytes) -> None:
    with service.client() as client:
        answer = client.post(
            "/generate", json={**GARMENTS, "steps": 2, "seed": 1}, headers={"Accept": f"image/{format}"}
        )
        assert answer.status_code == 200
        assert answer.headers["content-type"] == f"image/{format}"
        assert answer.content.startswith(magic)


def test_prefer_wait_answers_the_finished_job_or_what_it_is_by_then(service: Any) -> None:
    with service.client() as client:
        done = client.post("/generate", json={**GARMENTS, "steps": 2}, headers={"Prefer": "wait=60"})
        assert (done.status_code, done.json()["status"]) == (200, "succeeded")
        assert done.headers["preference-applied"] == "wait=60"
        slow = client.post("/generate", json={**GARMENTS, "steps": 1000}, headers={"Prefer": "wait=0"})
        assert slow.status_code == 202
        assert slow.json()["status"] in ("queued", "running")
        assert client.delete(slow.headers["location"]).json()["status"] == "canceled"


def test_a_wait_for_the_picture_that_runs_out_is_a_504_that_names_the_job(service: Any) -> None:
    with service.client() as client:
        answer = client.post(
            "/generate",
            json={**GARMENTS, "steps": 1000},
            headers={"Accept": "image/png", "Prefer": "wait=0"},
        )
        assert answer.status_code == 504
        assert answer.headers["content-type"] == "application/problem+json"
        job = answer.json()["job"]
        assert job in answer.json()["detail"]
        assert client.delete(f"/jobs/{job}").status_code == 200


def test_a_client_that_goes_away_takes_its_job_with_it(service: Any) -> None:
    with service.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(
                "/generate",
                json={**GARMENTS, "steps": 1000, "seed": 99},
                headers={"Accept": "image/png"},
                timeout=1.0,
            )
        job = next(job for job in client.get("/jobs").json()["jobs"] if job["seed"] == 99)
        assert _finished(client, job["id"])["status"] == "canceled"


def test_jobs_of_all_lengths_share_the_batch(service: Any) -> None:
    with service.client() as client:
        long = client.post("/generate", json={**GARMENTS, "steps": 300, "seed": 1}).json()
        short = client.post("/generate", json={**GARMENTS, "steps": 3, "seed": 2}, headers={"Prefer": "wait=60"}).json()
        assert short["status"] == "succeeded"
        still = client.get(f"/jobs/{long['id']}").json()
        assert still["status"] == "running"
        assert 0 < still["progress"]["step"] < 300
        assert short["timing"]["mean_batch"] > 1
        canceled = client.delete(f"/jobs/{long['id']}")
        assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
        assert client.delete(f"/jobs/{long['id']}").status_code == 200
        assert client.delete(f"/jobs/{short['id']}").status_code == 409


def test_a_socket_brings_progress_and_frames_from_noise_to_the_picture(service: Any) -> None:
    events = asyncio.run(_watch(service.url, {**REQUEST, "steps": 10, "preview_every": 1, "preview": "both"}))
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events[:2]] == ["queued", "started"]
    assert [event["step"] for event in events if event["type"] == "progress"] == list(range(1, 11))
    assert events[-1]["type"] == "succeeded"
    assert events[-1]["result"]["status"] == "succeeded"
    seen = [_frame(event) for event in events if event["type"] == "frame" and event["kind"] == "xt"]
    believed = [_frame(event) for event in events if event["type"] == "frame" and event["kind"] == "x0"]
    assert len(seen) == len(believed) == 10
    sigmas = [event["sigma"] for event in events if event["type"] == "frame" and event["kind"] == "xt"]
    assert sigmas == sorted(sigmas, reverse=True)
    with service.client() as client:
        final = _pixels(client.get(events[-1]["result"]["images"][0]["url"]).content)
    distance = [float(np.abs(frame - final).mean()) for frame in seen]
    assert distance[0] > 5 * distance[-1]  # noise at first, the picture at last
    assert np.array_equal(believed[-1], final)  # ddim ends in the last x̂_0


def test_frames_of_all_kinds_fit_together(service: Any) -> None:
    """x_t = α·x̂_0 + σ·ε̂ to within 8 bits, wherever nothing is cut off. With guidance, ε̂ belongs to the clipped x̂_0."""
    request = {**REQUEST, "guidance_scale": 3, "steps": 4, "preview_every": 1, "preview": "all"}
    events = [event for event in asyncio.run(_watch(service.url, request)) if event["type"] == "frame"]
    for step in range(1, 5):
        frames = {event["kind"]: event for event in events if event["step"] == step}
        sigma = frames["eps"]["sigma"]
        x_t, x_0, noise = (_frame(frames[kind]) / 127.5 - 1 for kind in ("xt", "x0", "eps"))
        inside = (abs(x_t) < 0.99) & (abs(noise) < 0.99)
        assert inside.mean() > 0.4
        error = x_t - np.sqrt(1 - sigma**2) * x_0 - sigma * 3 * noise
        assert abs(error[inside]).max() < (1 + 1 + 3) / 255 + 1e-3, "half a level of each"


def test_a_socket_can_come_late_and_go_on_from_a_seq(service: Any) -> None:
    with service.client() as client:
        job = client.post("/generate", json=REQUEST, headers={"Prefer": "wait=60"}).json()
    url = service.url.replace("http", "ws") + f"/jobs/{job['id']}/events"
    everything = asyncio.run(_listen(url))
    rest = asyncio.run(_listen(f"{url}?after=4"))
    assert everything[0]["seq"] == 1
    assert rest == everything[4:]


@pytest.mark.parametrize("format", ["webp", "gif", "apng"])
def test_a_job_has_a_film_of_its_frames(service: Any, format: str) -> None:
    with service.client() as client:
        request = {**REQUEST, "n": 2, "preview_every": 2, "preview": "both"}
        job = client.post("/generate", json=request, headers={"Prefer": "wait=60"}).json()
        film = client.get(job["links"]["animation"], params={"format": format})
        assert film.headers["content-type"] == f"image/{format}"
        with Image.open(io.BytesIO(film.content)) as opened:
            assert opened.n_frames == 3  # type: ignore[attr-defined]
            assert opened.width == 2 * opened.height


def test_a_job_without_frames_has_no_film(service: Any) -> None:
    with service.client() as client:
        job = client.post("/generate", json={**GARMENTS, "steps": 1}, headers={"Prefer": "wait=60"}).json()
        assert client.get(job["links"]["animation"]).status_code == 409


def test_an_unknown_job_has_no_socket(service: Any) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        asyncio.run(_listen(service.url.replace("http", "ws") + "/jobs/nope/events"))
    assert refused.value.response.status_code == 404


def test_a_socket_to_nowhere_is_a_404(service: Any) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        asyncio.run(_listen(service.url.replace("http", "ws") + "/nowhere"))
    assert refused.value.response.status_code == 404


def test_a_wrong_first_message_is_answered_with_its_problem(service: Any) -> None:
    async def post() -> tuple[dict[str, Any], int | None]:
        async with websockets.connect(service.url.replace("http", "ws") + "/generate") as socket:
            await socket.send('{"label": "hat", "steps": 0}')
            problem = json.loads(await socket.recv())
            await socket.wait_closed()
            return problem, socket.close_code

    problem, code = asyncio.run(post())
    assert (problem["status"], code) == (422, 1008)
    assert problem["errors"][0]["field"] == "steps"


def _finished(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job at its end, as its own events report it (SSE)."""
    with client.stream("GET", f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("data: ")]
    return dict(json.loads(lines[-1].removeprefix("data: "))["result"])


async def _watch(url: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    async with websockets.connect(url.replace("http", "ws") + "/generate") as socket:
        await socket.send(json.dumps(request))
        return [json.loads(message) async for message in socket]


async def _listen(url: str) -> list[dict[str, Any]]:
    async with websockets.connect(url) as socket:
        return [json.loads(message) async for message in socket]


def _frame(event: dict[str, Any]) -> Any:
    assert event["media_type"] == "image/png"
    return _pixels(base64.b64decode(event["data"]))
