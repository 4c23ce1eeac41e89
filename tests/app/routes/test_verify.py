"""`POST /verify`: which pictures are made again, and how differences are reported. A fake worker makes them."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

from denoised.app.routes.verify import same_pixels
from denoised.jobs.store.update import final_update
from denoised.worker.delivery.pictures.encoding import encode

MakeClient = Callable[..., TestClient]
TIMEOUT_SECONDS = 60.0
PNG = {"Content-Type": "image/png"}
PARAMETERS = {"model": "shoes", "label": "sneaker", "seed": 7, "steps": 20, "numerics": "fake"}
PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
MADE = encode(PIXELS, "png", PARAMETERS)


def check_problem(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    return body


def post(api: TestClient, picture: bytes, **headers: str) -> Any:
    return api.post("/verify", content=picture, headers={**PNG, **headers})


@contextmanager
def working(fake_worker: Any, owner: str = "", *, end: str = "succeeded", numerics: str = "fake") -> Iterator[None]:
    """Let the worker finish the next job with the picture MADE, or end it otherwise."""

    def work() -> None:
        until = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < until:
            waiting = [record for record in fake_worker.store.listing.page(owner, 10) if record.status == "queued"]
            if waiting:
                break
            time.sleep(0.01)
        if end == "succeeded":
            fake_worker.finish(waiting[0].id, fake_worker.start(waiting[0].id, numerics), data=MADE)
        elif end == "failed":
            failure = {"code": "evaluation_failed", "message": "the network gave no numbers"}
            fake_worker.store.write(final_update(waiting[0], "failed", failure))
        else:
            fake_worker.store.cancel(waiting[0].id)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join(TIMEOUT_SECONDS)
    assert not thread.is_alive()


def verdict(api: TestClient, fake_worker: Any, picture: bytes, numerics: str = "fake") -> dict[str, Any]:
    with working(fake_worker, numerics=numerics):
        answer = post(api, picture)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["match"] == (found["reason"] is None)
    assert found["sha256"] == hashlib.sha256(picture).hexdigest()
    assert found["expected_sha256"] == hashlib.sha256(MADE).hexdigest()
    return found


def with_text(image: Image.Image, **fields: Any) -> bytes:
    """The image as another program saves it, with its text."""
    info, out = PngInfo(), io.BytesIO()
    info.add_itxt("parameters", json.dumps(PARAMETERS | fields), zip=True)
    image.save(out, "png", pnginfo=info, compress_level=1)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=["PNG"])


def test_an_unchanged_picture_matches(api: TestClient, fake_worker: Any) -> None:
    found = verdict(api, fake_worker, MADE)
    assert (found["match"], found["pixels_match"], found["reason"]) == (True, True, None)
    assert found["numerics"] == {"picture": "fake", "here": "fake"}
    assert found["request"] == {"model": "shoes", "label": "sneaker", "seed": 7, "steps": 20}
    job = api.get(f"/jobs/{found['job']}").json()
    assert (job["seed"], job["label"], job["steps"], job["n"]) == (7, "sneaker", 20, 1)
    assert job["guidance_scale"] == 2.5, "what the file leaves out is the model's default"


def test_one_changed_pixel_is_detected(api: TestClient, fake_worker: Any) -> None:
    changed = PIXELS.copy()
    changed[3, 5, 0] ^= 1
    found = verdict(api, fake_worker, encode(changed, "png", PARAMETERS))
    assert (found["match"], found["pixels_match"]) == (False, False)
    assert "changed" in found["reason"]


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA"])
def test_the_same_pixels_in_another_file_are_distinguished(mode: str, api: TestClient, fake_worker: Any) -> None:
    found = verdict(api, fake_worker, with_text(opened(MADE).convert(mode)))
    assert (found["match"], found["pixels_match"]) == (False, True)
    assert found["reason"] == "same pixels, different file: it was re-saved or edited"


@pytest.mark.parametrize("touched", [False, True])
def test_other_numerics_are_named(touched: bool, api: TestClient, fake_worker: Any) -> None:
    pixels = PIXELS ^ 1 if touched else PIXELS
    found = verdict(api, fake_worker, encode(pixels, "png", PARAMETERS | {"numerics": "eager/torch-1"}))
    assert (found["match"], found["pixels_match"]) == (False, not touched)
    assert found["numerics"] == {"picture": "eager/torch-1", "here": "fake"}
    assert "eager/torch-1" in found["reason"]
    assert ("same pixels" in found["reason"]) is not touched


@pytest.mark.parametrize("touched", [False, True])
def test_another_model_of_the_same_name_is_named(touched: bool, api: TestClient, fake_worker: Any) -> None:
    pixels, here = PIXELS ^ 1 if touched else PIXELS, "eager/torch-2/model-1a2b/format-2"
    picture = encode(pixels, "png", PARAMETERS | {"numerics": "eager/torch-2/model-3c4d/format-2"})
    found = verdict(api, fake_worker, picture, numerics=here)
    subject = "the picture" if touched else "same pixels, but the file"
    assert found["reason"] == f"{subject} was made by another model of that name (digest 3c4d; here 1a2b)"


def test_another_version_of_the_file_format_is_named(api: TestClient, fake_worker: Any) -> None:
    found = verdict(api, fake_worker, encode(PIXELS, "png", PARAMETERS | {"n": 1, "numerics": "fake/format-1"}))
    assert (found["match"], found["pixels_match"]) == (False, True)
    assert found["reason"] == "same pixels, different file: another version of denoised wrote it"


def test_damaged_pixels_are_no_match(api: TestClient, fake_worker: Any) -> None:
    at = MADE.index(b"IDAT") + 40
    found = verdict(api, fake_worker, MADE[:at] + bytes([MADE[at] ^ 255]) + MADE[at + 1 :])
    assert (found["match"], found["pixels_match"]) == (False, False)
    assert "damaged" in found["reason"]


def test_bytes_after_the_end_of_the_picture_are_no_match(api: TestClient, fake_worker: Any) -> None:
    found = verdict(api, fake_worker, MADE + b"something hidden")
    assert (found["match"], found["pixels_match"]) == (False, True)


def test_a_picture_of_another_size_is_never_decoded(api: TestClient, fake_worker: Any) -> None:
    huge = MADE[:16] + (60_000).to_bytes(4, "big") * 2 + MADE[24:]
    found = verdict(api, fake_worker, huge)
    assert (found["match"], found["pixels_match"]) == (False, False)


@pytest.mark.parametrize(("side", "answer"), [(9_000, False), (60_000, None)])
def test_a_second_size_is_never_decoded(side: int, answer: bool | None) -> None:
    """Pillow uses the second one; it refuses more than 179 million pixels itself."""
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + MADE[24:29]
    second = MADE[8:12] + header + zlib.crc32(header).to_bytes(4, "big")
    assert same_pixels(MADE[:33] + second + MADE[33:], MADE) is answer


def test_sixteen_bit_pixels_do_not_match() -> None:
    deep = io.BytesIO()
    Image.fromarray(PIXELS[..., 0].astype(np.uint16)).save(deep, "png")
    assert same_pixels(deep.getvalue(), MADE) is False


@settings(max_examples=150, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(24, len(MADE)), st.integers(0, 20), st.binary(max_size=20)), max_size=4))
def test_no_bytes_break_the_comparison(edits: list[tuple[int, int, bytes]]) -> None:
    file = bytearray(MADE)
    for start, cut, put in edits:
        file[start : start + cut] = put
    assert same_pixels(bytes(file), MADE) in (True, False, None)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, len(MADE)), st.integers(0, 20), st.binary(max_size=20)), max_size=4))
def test_no_bytes_cause_a_server_error(edits: list[tuple[int, int, bytes]], api: TestClient) -> None:
    """The model is not served, so an intact request creates no job."""
    file = bytearray(encode(PIXELS, "png", PARAMETERS | {"model": "hats"}))
    for start, cut, put in edits:
        file[start : start + cut] = put
    answer = post(api, bytes(file))
    check_problem(answer, 415 if answer.status_code == 415 else 422)


@pytest.mark.parametrize("end", ["failed", "canceled"])
def test_a_picture_that_cannot_be_made_again_is_a_conflict(end: str, api: TestClient, fake_worker: Any) -> None:
    with working(fake_worker, end=end):
        problem = check_problem(post(api, MADE), 409)
    assert end in problem["detail"]
    assert api.get(f"/jobs/{problem['job']}").json()["status"] == end


def test_a_timeout_names_the_job_and_the_wait_can_be_resumed(api: TestClient, fake_worker: Any) -> None:
    key = {"Idempotency-Key": "once"}
    problem = check_problem(post(api, MADE, Prefer="wait=0", **key), 504)
    with working(fake_worker):
        answer = post(api, MADE, Prefer="wait=30", **key)
    assert answer.json()["match"] is True
    assert answer.json()["job"] == problem["job"]
    assert answer.headers["location"] == f"/jobs/{problem['job']}"
    assert answer.headers["preference-applied"] == "wait=30"
    assert len(api.get("/jobs").json()["jobs"]) == 1
    check_problem(post(api, encode(PIXELS, "png", PARAMETERS | {"seed": 8}), **key), 422)


def test_the_wait_is_capped_as_everywhere(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    api = make_client(max_wait=0.1)
    check_problem(post(api, MADE), 504)
    check_problem(post(api, MADE, Prefer="wait=3600"), 504)


def test_a_model_that_is_not_served_is_named(make_client: MakeClient, fake_worker: Any, card_of: Any) -> None:
    api = make_client()
    check_problem(post(api, MADE), 503)
    fake_worker.serve(card_of(name="hats"))
    time.sleep(1.1)  # what workers serve is remembered for a second
    assert "shoes" in check_problem(post(api, MADE), 422)["detail"]


def test_a_request_that_the_model_does_not_accept_is_refused(api: TestClient) -> None:
    for fields in ({"label": "hat"}, {"steps": 1001}, {"sampler": "magic"}, {"eta": 0.5, "sampler": "heun"}):
        (name, *_) = fields
        problem = check_problem(post(api, encode(PIXELS, "png", PARAMETERS | fields)), 422)
        assert problem["errors"][0]["field"] == name


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_formats_that_carry_no_request_are_refused(kind: str, api: TestClient) -> None:
    picture = encode(PIXELS, kind, PARAMETERS)
    assert "only PNGs" in check_problem(post(api, picture), 415)["detail"]
    answer = api.post("/verify", content=picture, headers={"Content-Type": f"image/{kind}"})
    assert "supported: image/png" in check_problem(answer, 415)["detail"]


@pytest.mark.parametrize("kind", ["", "application/json", "text/plain", "image/apng", "image/*"])
def test_a_body_without_the_png_media_type_is_refused(kind: str, api: TestClient) -> None:
    check_problem(api.post("/verify", content=MADE, headers={"Content-Type": kind}), 415)


def test_no_other_route_accepts_pictures(api: TestClient) -> None:
    answer = api.post("/generate", content=MADE, headers=PNG)
    assert "application/json" in check_problem(answer, 415)["detail"]
    check_problem(api.put("/verify", content=MADE, headers=PNG), 405)
    assert api.post("/verify/", content=MADE, headers=PNG, follow_redirects=False).status_code == 307


def test_an_empty_body_is_refused(api: TestClient) -> None:
    assert check_problem(post(api, b""), 422)["errors"][0]["field"] == "body"
    check_problem(api.post("/verify"), 422)


def test_a_body_is_limited_with_and_without_a_length(api: TestClient) -> None:
    much = MADE + bytes(8 * 1024 * 1024)
    check_problem(post(api, much), 413)
    check_problem(api.post("/verify", content=iter([much[:5_000_000], much[5_000_000:]]), headers=PNG), 413)


def test_verify_needs_authentication(make_client: MakeClient) -> None:
    api = make_client()
    check_problem(post(api, MADE, **{"Sec-Fetch-Site": "cross-site"}), 403)
    check_problem(post(api, MADE, Origin="https://evil.example"), 403)
    check_problem(post(make_client(keys=("secret",)), b"?", Authorization="Bearer wrong"), 401)


def test_the_job_belongs_to_the_caller(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    api = make_client(keys=("one", "two"))
    owner = hashlib.sha256(b"one").hexdigest()[:16]
    with working(fake_worker, owner):
        job = post(api, MADE).json()["job"]
    assert api.get(f"/jobs/{job}").status_code == 200
    assert api.get(f"/jobs/{job}", headers={"Authorization": "Bearer two"}).status_code == 404


def test_the_queue_limit_applies(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    api = make_client(max_queue=1)
    assert api.post("/generate", json={}).status_code == 202
    refused = post(api, MADE)
    check_problem(refused, 429)
    assert int(refused.headers["retry-after"]) >= 1


def test_without_redis_it_is_a_503(make_client: MakeClient, missing_redis_url: str) -> None:
    assert "Redis" in check_problem(post(make_client(redis_url=missing_redis_url), MADE), 503)["detail"]
