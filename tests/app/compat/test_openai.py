"""`/v1` with a fake worker: refusals, translation and streams. `tests/journeys/test_openai.py` runs the official client
against real workers."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from denoised.app.compat.openai.image_stream import ImageStream
from denoised.app.compat.openai.openai_schemas import ImagesRequest
from denoised.app.compat.openai.translation import translate
from denoised.app.http.errors import InvalidRequest
from denoised.app.services import Services
from denoised.jobs.store.update import JobUpdate
from tests.app.compat.queued_worker import start_worker

MakeClient = Callable[..., TestClient]
IMAGES = "/v1/images/generations"


def png(shade: int = 0, side: int = 28) -> bytes:
    out = io.BytesIO()
    Image.new("L", (side, side), shade).save(out, "png")
    return out.getvalue()


def error(answer: Any, status: int) -> dict[str, Any]:
    """The content of an error object, which has exactly these members."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    members: dict[str, Any] = body["error"]
    return members


REFUSED = [
    ({}, "prompt", "is missing"),
    ({"prompt": "a cat"}, "prompt", "sneaker, Ankle Boot, ботинок"),
    ({"prompt": "a sneaker or an ankle boot"}, "prompt", "several classes (sneaker, Ankle Boot)"),
    ({"prompt": None}, "prompt", "null"),
    ({"prompt": "x" * 32_001}, "prompt", "32000"),
    ({"prompt": "sneaker", "n": 0}, "n", "0"),
    ({"prompt": "sneaker", "n": 17}, "n", "16"),
    ({"prompt": "sneaker", "n": True}, "n", "true"),
    ({"prompt": "sneaker", "size": "1024x1024"}, "size", "28x28"),
    ({"prompt": "sneaker", "output_format": "gif"}, "output_format", "png, webp or jpeg"),
    ({"prompt": "sneaker", "response_format": "file"}, "response_format", "url or b64_json"),
    ({"prompt": "sneaker", "background": "transparent"}, "background", "opaque or auto"),
    ({"prompt": "sneaker", "output_compression": 50}, "output_compression", "100"),
    ({"prompt": "sneaker", "partial_images": 4, "stream": True}, "partial_images", "3"),
    ({"prompt": "sneaker", "partial_images": 1}, "partial_images", "without stream"),
    ({"prompt": "sneaker", "stream": True, "n": 2}, "n", "1"),
    ({"prompt": "sneaker", "stream": True, "response_format": "url"}, "response_format", "b64_json"),
    ({"prompt": "sneaker", "steps": 1001}, "steps", "1000"),
    ({"prompt": "sneaker", "seed": -1}, "seed", "0"),
    ({"prompt": "sneaker", "guidance_scale": 21}, "guidance_scale", "20"),
    ({"prompt": "sneaker", "guidance_scale": "2"}, "guidance_scale", "number"),
    ({"prompt": "", "guidance_scale": 2}, "guidance_scale", "needs a label"),
    ({"prompt": "sneaker", "mask": "x"}, "mask", "is not a field"),
]


@pytest.mark.parametrize(("body", "field", "words"), REFUSED, ids=[f"{field}-{words}" for _, field, words in REFUSED])
def test_an_invalid_field_is_a_400_that_names_field_and_limit(
    body: dict[str, Any], field: str, words: str, api: TestClient
) -> None:
    found = error(api.post(IMAGES, json=body), 400)
    assert (found["type"], found["param"], found["code"]) == ("invalid_request_error", field, "invalid_value")
    assert words in found["message"]


HARMLESS = {
    "size": ["auto", "28x28"],
    "quality": ["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"],
    "background": ["opaque", "auto"],
    "style": ["vivid", "natural"],
    "moderation": ["low", "auto"],
    "complexity": ["low", "medium", "high"],
    "output_compression": [100],
    "user": ["somebody"],
    "safety_identifier": ["5ab2"],
    "partial_images": [0],
}


@pytest.mark.parametrize("field", HARMLESS)
def test_ignored_fields_change_nothing(field: str, card_of: Any) -> None:
    plain = translate(ImagesRequest(prompt="sneaker"), card_of())
    for value in [*HARMLESS[field], None]:
        assert translate(ImagesRequest.model_validate({"prompt": "sneaker", field: value}), card_of()) == plain


def test_a_request_is_translated_to_generate_fields(card_of: Any) -> None:
    body = {"prompt": "two ankle boots", "n": 2, "seed": 5, "steps": 9, "guidance_scale": 3, "output_format": "webp"}
    fields = translate(ImagesRequest.model_validate(body), card_of())
    given = {name: value for name, value in fields.items() if value is not None}
    assert given == {
        "model": "shoes",
        "label": 1,
        "n": 2,
        "seed": 5,
        "steps": 9,
        "guidance_scale": 3.0,
        "format": "webp",
        "preview_every": 0,
    }


@pytest.mark.parametrize("partial", [0, 1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 10, 20, 999, 1000, None])
def test_enough_frames_are_kept_for_the_partial_images(partial: int, steps: int | None, card_of: Any) -> None:
    body = ImagesRequest(prompt="sneaker", stream=True, partial_images=partial, steps=steps)
    every = translate(body, card_of())["preview_every"]
    count = steps or 20
    frames = [step for step in range(1, count) if every and step % every == 0]
    assert every <= count
    assert len(frames[:partial]) == min(partial, count - 1)
    if partial and count > 20:
        assert frames[0] > count / 5  # spread over the steps


def test_every_conflict_between_fields_is_reported(card_of: Any) -> None:
    body = ImagesRequest(prompt="sneaker", stream=True, n=2, size="1x1", response_format="url")
    with pytest.raises(InvalidRequest) as refused:
        translate(body, card_of())
    assert [error["field"] for error in refused.value.extra["errors"]] == ["size", "n", "response_format"]


def test_models_are_listed_and_found_by_name(api: TestClient) -> None:
    listing = api.get("/v1/models").json()
    entry = {"id": "shoes", "object": "model", "created": 0, "owned_by": "denoised"}
    assert listing == {"object": "list", "data": [entry]}
    assert api.get("/v1/models/shoes").json() == entry
    found = error(api.get("/v1/models/hats"), 404)
    assert (found["param"], found["code"]) == ("model", "model_not_found")


def test_an_unknown_model_is_a_404_that_lists_the_served_ones(api: TestClient) -> None:
    found = error(api.post(IMAGES, json={"prompt": "sneaker", "model": "dall-e-3"}), 404)
    assert (found["type"], found["param"], found["code"]) == ("invalid_request_error", "model", "model_not_found")
    assert "shoes" in found["message"]


def test_every_refusal_under_v1_is_an_error_object(
    make_client: MakeClient, fake_worker: Any, missing_redis_url: str
) -> None:
    fake_worker.serve()
    keyed, local = make_client(keys=("secret",)), make_client()
    assert error(keyed.get("/v1/models", headers={"Authorization": ""}), 401)["code"] == "invalid_api_key"
    assert error(keyed.get("/v1/nothing", headers={"Authorization": "Bearer x"}), 401)["code"] == "invalid_api_key"
    assert error(local.get("/v1/models", headers={"Host": "evil.example"}), 403)["code"] == "forbidden"
    assert error(local.get("/v1/chat/completions"), 404)["code"] == "not_found"
    assert error(local.get("/v1"), 404)["code"] == "not_found"
    assert error(local.get(IMAGES), 405)["code"] == "method_not_allowed"
    assert local.get(IMAGES).headers["allow"] == "POST"
    assert error(local.post(IMAGES, content=b"{"), 415)["code"] == "unsupported_media_type"
    json_type = {"Content-Type": "application/json"}
    assert error(local.post(IMAGES, content=b"{", headers=json_type), 400)["param"] == "body"
    too_long = {**json_type, "Content-Length": "1000000000"}
    assert error(local.post(IMAGES, content=b"{}", headers=too_long), 413)["code"] == "request_too_large"
    away = make_client(redis_url=missing_redis_url)
    assert error(away.get("/v1/models"), 503)["type"] == "server_error"
    assert error(away.post(IMAGES, json={"prompt": "x"}), 503)["code"] == "unavailable"
    assert away.post(IMAGES, json={"prompt": "x"}).headers["retry-after"] == "2"
    assert local.get("/v1x").headers["content-type"] == "application/problem+json"


def test_a_full_queue_is_a_rate_limit_error_with_retry_after(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    api = make_client(max_queue=1)
    assert api.post("/generate", json={}).status_code == 202
    answer = api.post(IMAGES, json={"prompt": "sneaker"})
    found = error(answer, 429)
    assert (found["type"], found["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_timeout_names_its_job_and_forbids_a_retry(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    api = make_client(max_wait=0.1)
    answer = api.post(IMAGES, json={"prompt": "sneaker"})
    found = error(answer, 504)
    assert answer.headers["x-should-retry"] == "false"
    (job,) = api.get("/jobs").json()["jobs"]
    assert job["id"] in found["message"]
    assert job["status"] == "queued"


def frame(step: int, shade: int) -> dict[str, Any]:
    data = base64.b64encode(png(shade)).decode()
    return {
        "type": "frame",
        "image": 0,
        "step": step,
        "steps": 20,
        "kind": "x0",
        "media_type": "image/png",
        "data": data,
    }


def stream_events(answer: Any) -> list[tuple[str, dict[str, Any]]]:
    """The (name, data) of each event of a stream."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block for block in answer.text.split("\n\n") if "data: " in block]
    lines = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]
    return [(line["event"], json.loads(line["data"])) for line in lines]


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_a_stream_sends_partial_images_then_the_picture_and_ends(
    format: str, api: TestClient, fake_worker: Any
) -> None:
    def steps(job_id: str, attempt: int) -> None:
        for number, step in enumerate((6, 12, 18, 20), start=1):
            fake_worker.progress(job_id, attempt, number, frame(step, 10 * step))
        fake_worker.finish(job_id, attempt, data=png(255))

    worker = start_worker(api, fake_worker, steps)
    body = {"prompt": "sneaker", "stream": True, "partial_images": 2, "output_format": format}
    answer = api.post(IMAGES, json=body)
    worker.join()
    events = stream_events(answer)
    assert [name for name, _ in events] == [*["image_generation.partial_image"] * 2, "image_generation.completed"]
    for k, (name, data) in enumerate(events):
        assert data["type"] == name
        assert (data["size"], data["background"], data["quality"]) == ("28x28", "opaque", "auto")
        assert data["output_format"] == format
        assert abs(data["created_at"] - time.time()) < 60
        assert data.get("partial_image_index") == (k if k < 2 else None)
        with Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))) as opened:
            assert k == 2 or opened.format == format.upper()
            assert abs(opened.convert("L").getpixel((3, 3)) - (60, 120, 255)[k]) <= 1  # type: ignore[operator]
    usage = events[-1][1]["usage"]
    assert (usage["total_tokens"], usage["input_tokens_details"]["text_tokens"]) == (0, 0)
    assert answer.headers["x-job-id"] in answer.headers["location"]


def test_a_stream_of_a_job_that_fails_ends_with_an_error(api: TestClient, fake_worker: Any) -> None:
    def steps(job_id: str, attempt: int) -> None:
        write = JobUpdate(job_id, attempt, 1, image_count=1)
        write.end("failed", {"code": "nan_output", "message": "the network's output is not finite"})
        assert fake_worker.store.write(write)

    worker = start_worker(api, fake_worker, steps)
    answer = api.post(IMAGES, json={"prompt": "sneaker", "stream": True})
    worker.join()
    ((name, data),) = stream_events(answer)
    assert (name, data["type"]) == ("error", "error")
    assert (data["error"]["code"], data["error"]["type"]) == ("nan_output", "server_error")
    assert "not finite" in data["error"]["message"]


@pytest.mark.parametrize("cancel", [True, False])
def test_a_client_that_disconnects_before_its_stream_starts_cancels_the_job(
    cancel: bool, api: TestClient, services: Services
) -> None:
    record = services.store.job(api.post("/generate", json={}).json()["id"])
    assert record is not None

    async def answer() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            """Nobody reads it."""

        await ImageStream(services, record, services.streams.open(""), 0, {}, cancel=cancel)(
            {"type": "http"}, receive, send
        )

    assert api.portal is not None
    api.portal.call(answer)
    after = services.store.job(record.id)
    assert after is not None
    assert after.status == ("canceled" if cancel else "queued")


def test_a_job_canceled_during_the_wait_is_a_409(api: TestClient, fake_worker: Any) -> None:
    worker = start_worker(api, fake_worker, lambda job_id, attempt: api.delete(f"/jobs/{job_id}") and None)
    answer = api.post(IMAGES, json={"prompt": "sneaker"})
    worker.join()
    assert error(answer, 409)["code"] == "conflict"
    assert answer.headers["x-should-retry"] == "false"


def test_an_idempotency_key_finds_its_job_again(api: TestClient, fake_worker: Any) -> None:
    """A request that is repeated after a timeout returns the pictures of the first."""
    worker = start_worker(
        api, fake_worker, lambda job_id, attempt: fake_worker.finish(job_id, attempt, data=png(9)) and None
    )
    headers = {"Idempotency-Key": "again"}
    answers = [api.post(IMAGES, json={"prompt": "sneaker"}, headers=headers) for _ in range(2)]
    worker.join()
    assert answers[0].json() == answers[1].json()
    (data,) = answers[0].json()["data"]
    assert base64.b64decode(data["b64_json"]) == png(9)
    assert len(api.get("/jobs").json()["jobs"]) == 1


def test_a_url_has_the_host_that_the_client_used(api: TestClient, fake_worker: Any) -> None:
    worker = start_worker(
        api, fake_worker, lambda job_id, attempt: fake_worker.finish(job_id, attempt, data=png(9)) and None
    )
    answer = api.post(IMAGES, json={"prompt": "sneaker", "response_format": "url"}, headers={"Host": "localhost:81"})
    worker.join()
    (data,) = answer.json()["data"]
    assert data["url"] == f"http://localhost:81/jobs/{answer.headers['x-job-id']}/images/0"
    assert "b64_json" not in data


# Edits and variations

EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"


def transparent(opaque: int = 200) -> bytes:
    """A picture whose left half is transparent."""
    image = Image.new("RGBA", (28, 28), (opaque, opaque, opaque, 255))
    image.paste((0, 0, 0, 0), (0, 0, 14, 28))
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


@pytest.fixture
def redrawing(make_client: MakeClient, fake_worker: Any, card_of: Any) -> TestClient:
    fake_worker.serve(card_of(pictures="start"))
    return make_client(max_wait=0.1)


def submitted(api: TestClient, path: str, data: dict[str, Any], **files: bytes) -> dict[str, Any]:
    """The newest job after a request; nothing works on it, so the client waits in vain."""
    parts = {name: (f"{name}.png", content, "image/png") for name, content in files.items()}
    answer = api.post(path, data=data, files=parts)
    assert answer.status_code == 504, answer.text
    job: dict[str, Any] = api.get("/jobs").json()["jobs"][0]
    return job


def test_what_is_transparent_is_made_anew(redrawing: TestClient, client: Any) -> None:
    by_mask = submitted(redrawing, EDITS, {"prompt": "sneaker", "seed": "3"}, image=png(9), mask=transparent())
    assert (by_mask["label"], by_mask["seed"], by_mask["strength"]) == ("sneaker", 3, 1.0)
    (key,) = client.keys(f"denoised:input::{by_mask['mask'].removeprefix('sha256:')}:28x28x1")
    mask = Image.open(io.BytesIO(client.get(key)))
    assert (mask.getpixel((3, 3)), mask.getpixel((20, 3))) == (255, 0)
    by_picture = submitted(redrawing, EDITS, {"prompt": "sneaker"}, image=transparent())
    assert by_picture["mask"] == by_mask["mask"]
    whole = submitted(redrawing, EDITS, {"prompt": "sneaker"}, image=png(9))
    assert (whole["mask"], whole["strength"]) == (None, 0.8)


def test_a_variation_redraws_a_picture_without_a_prompt(redrawing: TestClient) -> None:
    job = submitted(redrawing, VARIATIONS, {"n": "2", "size": "28x28", "strength": "0.4"}, image=png(9))
    assert (job["n"], job["label"], job["strength"]) == (2, None, 0.4)


def test_an_edit_that_cannot_be_made_names_the_field(redrawing: TestClient) -> None:
    def refused(data: dict[str, Any], **files: bytes) -> dict[str, Any]:
        parts = {name: (f"{name}.png", content, "image/png") for name, content in files.items()}
        return error(redrawing.post(EDITS, data=data, files=parts), 400)

    assert refused({"prompt": "sneaker"}, mask=png())["param"] == "image"
    assert refused({"prompt": "sneaker"}, image=b"GIF89a")["param"] == "image"
    found = refused({"prompt": "sneaker"}, image=png(), mask=png())
    assert (found["param"], "no transparent part" in found["message"]) == ("mask", True)
    several = [("image[]", ("a.png", png())), ("image[]", ("b.png", png()))]
    found = error(redrawing.post(EDITS, data={"prompt": "sneaker"}, files=several), 400)
    assert (found["param"], found["message"]) == ("image", "image: 2 parts were given (allowed: 1)")
