"""Requests that start from a picture: where it comes from, what is stored of it and for how long."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from PIL import Image
from starlette.testclient import TestClient

from denoised.jobs.picture_reading import PictureShape
from denoised.jobs.store.input_pictures import input_key
from denoised.model.serving.card import ModelCard

SHAPE = PictureShape(28, 28, 1)


def png(level: int = 90, size: tuple[int, int] = (28, 28), mode: str = "L") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, level if mode == "L" else (level,) * 3).save(out, "png")
    return out.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def api(make_client: Callable[..., TestClient], fake_worker: Any, card_of: Callable[..., ModelCard]) -> TestClient:
    fake_worker.serve(card_of(pictures="start"))
    return make_client()


def errors(answer: Any) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {error["field"]: error["message"] for error in answer.json()["errors"]}


def test_a_job_names_the_file_and_the_store_has_its_pixels(api: TestClient, client: redis.Redis) -> None:
    answer = api.post("/generate", json={"image": text(png()), "strength": 0.5})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["image"], job["strength"], job["mask"], job["warnings"]) == (digest(png()), 0.5, None, [])
    assert job["progress"] == {"step": 0, "steps": 10, "fraction": 0.0}
    stored = client.get(input_key("", digest(png()), SHAPE))
    assert isinstance(stored, bytes)
    image = Image.open(io.BytesIO(stored))
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("L", (28, 28), 90)


def test_base64_a_form_a_data_url_and_a_socket_make_the_same_request(api: TestClient) -> None:
    fields = {"strength": 0.5, "seed": 3, "label": "sneaker"}
    plain = api.post("/generate", json={"image": text(png()), "mask": text(png(255)), **fields}).json()
    url = f"data:image/png;base64,{text(png())}"
    by_url = api.post("/generate", json={"image": url, "mask": text(png(255)), **fields}).json()
    files = {"image": ("photo.png", png(), "image/png"), "mask": ("mask.png", png(255), "image/png")}
    form = {"strength": "0.5", "seed": "3", "label": "sneaker"}
    by_form = api.post("/generate", data=form, files=files)
    assert by_form.status_code == 202, by_form.text
    with api.websocket_connect("ws://127.0.0.1:8000/generate") as socket:
        socket.send_json({"image": text(png()), "mask": text(png(255)), **fields})
        by_socket = api.get(f"/jobs/{socket.receive_json()['job']}").json()
        api.delete(by_socket["links"]["cancel"])
        while socket.receive_json()["type"] != "canceled":
            pass
    names = ("image", "mask", "strength", "seed", "label")
    for other in (by_url, by_form.json(), by_socket):
        assert {name: other[name] for name in names} == {name: plain[name] for name in names}


def test_a_form_is_read_by_the_types_of_its_fields(api: TestClient) -> None:
    files = {"image": ("photo.png", png())}
    found = api.post("/generate", data={"guidance_interval": "[0.1, 2]", "label": "sneaker", "n": "2"}, files=files)
    assert (found.json()["guidance_interval"], found.json()["n"]) == ([0.1, 2.0], 2)
    assert "n" in errors(api.post("/generate", data={"n": "many"}, files=files))
    assert "pages" in errors(api.post("/generate", data={"pages": "2"}, files=files))
    repeated = api.post("/generate", files=[("image", ("a.png", png())), ("image", ("b.png", png()))])
    assert errors(repeated) == {"image": "2 parts were given (allowed: 1)"}


def test_a_picture_of_ones_own_job_and_no_other(
    make_client: Callable[..., TestClient], fake_worker: Any, card_of: Callable[..., ModelCard]
) -> None:
    fake_worker.serve(card_of(pictures="start"))
    api = make_client(keys=("mine", "theirs"))
    job = api.post("/generate", json={}).json()["id"]
    assert "(queued) has no image 0" in errors(api.post("/generate", json={"image": f"job:{job}/images/0"}))["image"]
    fake_worker.finish(job, fake_worker.start(job), data=png(12))
    found = api.post("/generate", json={"image": f"job:{job}/images/0"})
    assert found.json()["image"] == digest(png(12))
    other = {"Authorization": "Bearer theirs"}
    refused = errors(api.post("/generate", json={"image": f"job:{job}/images/0"}, headers=other))
    assert "not found" in refused["image"]
    # Its digest names it for its owner alone.
    assert api.post("/generate", json={"image": digest(png(12))}).status_code == 202
    refused = errors(api.post("/generate", json={"image": digest(png(12))}, headers=other))
    assert "is not stored here" in refused["image"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("https://example.org/cat.png", "URLs are not fetched"),
        ("file:///etc/passwd", "URLs are not fetched"),
        ("/etc/passwd", "not base64"),
        ("job:../../x/images/0", "not base64"),
        (text(b"<svg/>"), "not a PNG, JPEG or WebP"),
        (text(png()[:50]), "damaged"),
        ("sha256:" + "0" * 64, "is not stored here"),
    ],
)
def test_other_sources_are_refused(api: TestClient, image: str, message: str) -> None:
    assert message in errors(api.post("/generate", json={"image": image}))["image"]


def test_what_was_changed_is_a_warning(api: TestClient) -> None:
    job = api.post("/generate", json={"image": text(png(size=(100, 50), mode="RGB"))}).json()
    said = "100×50 pixels were resized to 56×28 and cropped to the 28×28 in the center"
    assert job["warnings"] == [{"field": "image", "message": said}]


def test_fields_that_need_a_picture_and_models_that_take_none(api: TestClient, fake_worker: Any) -> None:
    assert errors(api.post("/generate", json={"strength": 0.4})) == {"strength": "0.4 needs an image"}
    assert errors(api.post("/generate", json={"mask": text(png())}))["mask"].endswith("needs an image")
    job = api.post("/generate", json={}).json()
    again = {name: job[name] for name in ("image", "strength", "mask", "seed", "sampler")}
    assert api.post("/generate", json=again).status_code == 202  # what every job object carries asks for nothing


def test_a_model_that_takes_no_picture_says_so(make_client: Callable[..., TestClient], fake_worker: Any) -> None:
    fake_worker.serve()
    assert "takes no image" in errors(make_client().post("/generate", json={"image": text(png())}))["image"]


def test_large_json_needs_a_picture(api: TestClient) -> None:
    noise = Image.frombytes("RGB", (400, 400), bytes(range(256)) * 1875)
    out = io.BytesIO()
    noise.save(out, "png", compress_level=0)
    body = {"image": text(out.getvalue())}
    assert len(json.dumps(body)) > 500_000
    assert api.post("/generate", json=body).status_code == 202
    padded = json.dumps({"seed": 5}) + " " * 300_000
    answer = api.post("/generate", content=padded, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    with api.websocket_connect("ws://127.0.0.1:8000/generate") as socket:
        socket.send_text(padded)
        assert socket.receive_json()["status"] == 413


def test_a_picture_expires_with_the_last_of_its_jobs(api: TestClient, client: redis.Redis, fake_worker: Any) -> None:
    body = {"image": text(png())}
    first, second = (api.post("/generate", json=body).json()["id"] for _ in range(2))
    key = input_key("", digest(png()), SHAPE)
    assert client.smembers(f"{key}:jobs") == {first.encode(), second.encode()}
    api.delete(f"/jobs/{first}")
    assert client.ttl(key) == -1
    fake_worker.finish(second, fake_worker.start(second))
    assert 0 < client.ttl(key) <= client.ttl(f"denoised:job:{second}")
    assert not client.exists(f"{key}:jobs")
    third = api.post("/generate", json=body).json()["id"]
    assert client.ttl(key) == -1
    assert client.smembers(f"{key}:jobs") == {third.encode()}


def test_an_idempotency_key_stands_for_one_picture(api: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    first = api.post("/generate", json={"image": text(png())}, headers=headers).json()["id"]
    assert api.post("/generate", json={"image": text(png())}, headers=headers).json()["id"] == first
    assert api.post("/generate", json={"image": text(png(1))}, headers=headers).status_code == 422


def test_a_key_has_so_many_bytes_of_pictures_stored(
    make_client: Callable[..., TestClient], fake_worker: Any, card_of: Callable[..., ModelCard], client: redis.Redis
) -> None:
    """Each counts as 4 KiB at least, once for all jobs that start from it, until it has expired."""
    fake_worker.serve(card_of(pictures="start"))
    api = make_client(keys=("one-key-one-key-one-key", "two-key-two-key-two-key"), max_input_bytes_per_key=9000)

    def ask(level: int, key: str = "one-key-one-key-one-key") -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        return api.post("/generate", json={"image": text(png(level))}, headers=headers)

    first = ask(1)
    assert [first.status_code, ask(2).status_code, ask(1).status_code] == [202, 202, 202]
    refused = ask(3)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "60"
    assert "8192 bytes of pictures stored" in refused.json()["detail"]
    assert "(allowed together: 9000; left: 808)" in refused.json()["detail"]
    assert ask(3, "two-key-two-key-two-key").status_code == 202
    assert api.post("/generate", json={"image": text(png(2)), "strength": 0.5}).status_code == 202
    (own,) = [
        each for each in client.keys("denoised:input:*") if digest(png(1))[7:].encode() in each and b":jobs" not in each
    ]
    client.delete(own)  # as if it had expired
    (stored,) = [each for each in client.keys("denoised:stored:*") if client.hexists(each, own)]
    client.hset(stored, "counted_at", 0)
    assert ask(3).status_code == 202
    assert ask(4).status_code == 429


def test_without_keys_pictures_have_no_limit_of_their_own(
    make_client: Callable[..., TestClient], fake_worker: Any, card_of: Callable[..., ModelCard]
) -> None:
    fake_worker.serve(card_of(pictures="start"))
    api = make_client(max_input_bytes_per_key=1)
    assert api.post("/generate", json={"image": text(png())}).status_code == 202
