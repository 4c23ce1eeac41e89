"""`POST /noise`, `/score` and `/likelihood`: what they accept, and the files of what was computed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from denoised.jobs.record import ArrayFile
from denoised.jobs.store.update import JobUpdate
from denoised.model.serving.card import ModelCard

ASYNC = {"Prefer": "respond-async"}


def png() -> bytes:
    out = io.BytesIO()
    Image.new("L", (28, 28), 90).save(out, "png")
    return out.getvalue()


IMAGE = base64.b64encode(png()).decode()
TASKS: dict[str, dict[str, Any]] = {"noise": {"t": 400}, "score": {"t": 400}, "likelihood": {}}


@pytest.fixture
def api(make_client: Callable[..., TestClient], fake_worker: Any, card_of: Callable[..., ModelCard]) -> TestClient:
    fake_worker.serve(card_of(pictures="start"))
    return make_client()


def errors(answer: Any) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {error["field"]: error["message"] for error in answer.json()["errors"]}


def accepted(api: TestClient, task: str, **fields: Any) -> dict[str, Any]:
    answer = api.post(f"/{task}", json={"image": IMAGE, **TASKS[task], **fields}, headers=ASYNC)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert api.get(f"/jobs/{job['id']}").json()["task"] == task
    return job


def test_each_task_is_a_job_with_its_level_and_its_evaluations(api: TestClient) -> None:
    noise = accepted(api, "noise", n=3, seed=5)
    assert (noise["task"], noise["t"], noise["sigma"], noise["n"], noise["seed"]) == ("noise", 400.0, None, 3, 5)
    assert noise["progress"] == {"step": 0, "steps": 0, "fraction": 1.0}
    score = accepted(api, "score", t=None, sigma=1.5, label="sneaker", guidance_scale=3)
    assert (score["task"], score["t"], score["sigma"], score["label"]) == ("score", None, 1.5, "sneaker")
    assert (score["guidance_scale"], score["progress"]["steps"]) == (3.0, 1)
    likelihood = accepted(api, "likelihood", label=1)
    assert (likelihood["task"], likelihood["n"], likelihood["steps"]) == ("likelihood", 4, 50)
    assert likelihood["progress"]["steps"] == 50
    assert (likelihood["guidance_scale"], likelihood["result"], likelihood["arrays"]) == (1.0, None, [])


def test_a_job_for_pictures_names_its_task(api: TestClient) -> None:
    job = api.post("/generate", json={}).json()
    assert (job["task"], job["t"], job["sigma"], job["arrays"], job["result"]) == ("generate", None, None, [], None)


@pytest.mark.parametrize(
    ("task", "fields", "field", "message"),
    [
        ("noise", {"image": None}, "image", "is missing"),
        ("noise", {"image": "%%%"}, "image", "it is not base64"),
        ("noise", {"image": base64.b64encode(b"no picture").decode()}, "image", "PNG, JPEG or WebP"),
        ("noise", {"image": "https://example.com/a.png"}, "image", "URLs are not fetched"),
        ("noise", {"t": None}, "t", "is missing (allowed: 0 … 999, or sigma, a noise level σ/α)"),
        ("score", {"t": 999.5}, "t", "999.5 is over 999, the last timestep of shoes"),
        ("score", {"t": -1}, "t", "-1"),
        ("score", {"t": 3, "sigma": 1.0}, "sigma", "1 was given with t = 3 (allowed: one of them)"),
        ("score", {"t": None, "sigma": 0}, "sigma", "0 is not a noise level (allowed: over 0)"),
        (
            "score",
            {"t": None, "sigma": 500},
            "sigma",
            "outside the model's noise levels (allowed: 0.01 … 157.4)",
        ),
        ("score", {"t": "3"}, "t", "3"),
        ("score", {"label": "hat"}, "label", "is not a class of shoes"),
        ("score", {"guidance_scale": 2}, "guidance_scale", "needs a label"),
        ("score", {"prompt": "a shoe"}, "prompt", "takes no prompt"),
        ("score", {"width": 64}, "width", "takes no width"),
        ("score", {"steps": 3}, "steps", "allowed: "),
        ("noise", {"label": "sneaker"}, "label", "allowed: "),
        ("noise", {"n": 17}, "n", "17 is over 16"),
        ("likelihood", {"t": 3}, "t", "allowed: "),
        ("likelihood", {"probes": 1}, "probes", "1"),
        ("likelihood", {"probes": 17}, "probes", "17 is over 16"),
        ("likelihood", {"steps": 1001}, "steps", "1001"),
        ("likelihood", {"seed": 2**53 - 2}, "seed", "is over"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_its_limit(
    api: TestClient, task: str, fields: Any, field: str, message: str
) -> None:
    answer = api.post(f"/{task}", json={"image": IMAGE, **TASKS[task], **fields}, headers=ASYNC)
    assert message in errors(answer)[field]


@pytest.mark.parametrize("pictures", ["", "edit", "inpaint"])
@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_sees_more_than_the_noisy_picture_is_refused_by_name(
    make_client: Any, fake_worker: Any, card_of: Callable[..., ModelCard], task: str, pictures: str
) -> None:
    fake_worker.serve(card_of(name="painter", pictures=pictures))
    answer = make_client().post(f"/{task}", json={"image": IMAGE, **TASKS[task]}, headers=ASYNC)
    assert "painter" in errors(answer)["model"]


def test_without_a_model_the_first_that_starts_from_pictures_is_chosen(
    make_client: Any, fake_worker: Any, card_of: Callable[..., ModelCard]
) -> None:
    fake_worker.serve(card_of(name="editor", pictures="edit"), card_of(name="able", pictures="start"))
    assert accepted(make_client(), "noise")["model"] == "able"


def test_a_form_makes_the_same_request(api: TestClient) -> None:
    form = api.post(
        "/noise", data={"t": "400", "seed": "3"}, files={"image": ("a.png", png(), "image/png")}, headers=ASYNC
    )
    job = accepted(api, "noise", seed=3)
    assert form.status_code == 202, form.text
    assert {form.json()[name] == job[name] for name in ("t", "seed", "image", "task")} == {True}


def test_the_same_idempotency_key_with_another_task_is_refused(api: TestClient) -> None:
    headers = {**ASYNC, "Idempotency-Key": "a"}
    body = {"image": IMAGE, "t": 400, "seed": 1}
    first = api.post("/noise", json=body, headers=headers).json()
    assert api.post("/noise", json=body, headers=headers).json()["id"] == first["id"]
    assert "Idempotency-Key" in errors(api.post("/score", json=body, headers=headers))


def test_a_response_that_waits_has_the_unfinished_job_when_time_is_up(api: TestClient) -> None:
    answer = api.post("/score", json={"image": IMAGE, "t": 400}, headers={"Prefer": "wait=0"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=0")


def computed(fake_worker: Any, array: np.ndarray[Any, Any], name: str = "score", owner: str = "") -> str:
    """A finished job with one array."""
    out = io.BytesIO()
    np.save(out, array)
    job_id: str = fake_worker.create(owner=owner, task="score", t=400.0)
    attempt = fake_worker.start(job_id)
    file = ArrayFile(0, name, list(array.shape), hashlib.sha256(out.getvalue()).hexdigest())
    update = JobUpdate(job_id, attempt, 1, arrays={(0, name): out.getvalue()}, image_count=1)
    update.fields["arrays"] = json.dumps([file.__dict__])
    update.fields["result"] = json.dumps({"space": "pixels", "score_norm": 2.5})
    assert fake_worker.store.write(update)
    fake_worker.finish(job_id, attempt)
    return job_id


def test_an_array_is_a_file_and_a_picture(api: TestClient, fake_worker: Any) -> None:
    array = np.linspace(-2, 1, 6, dtype=np.float32).reshape(1, 2, 3)
    job = api.get(f"/jobs/{computed(fake_worker, array)}").json()
    (entry,) = job["arrays"]
    assert (entry["name"], entry["index"], entry["shape"], entry["dtype"]) == ("score", 0, [1, 2, 3], "float32")
    assert job["result"] == {"space": "pixels", "score_norm": 2.5}
    file = api.get(entry["url"])
    np.testing.assert_array_equal(np.load(io.BytesIO(file.content)), array)
    assert file.headers["etag"] == f'"{entry["sha256"]}"' == f'"{hashlib.sha256(file.content).hexdigest()}"'
    assert api.get(entry["url"], headers={"If-None-Match": file.headers["etag"]}).status_code == 304
    picture = api.get(entry["picture"])
    assert (picture.headers["content-type"], picture.headers["x-content-type-options"]) == ("image/png", "nosniff")
    with Image.open(io.BytesIO(picture.content)) as image:
        found = np.asarray(image)
    np.testing.assert_allclose(found, 128 + 127 * array[0] / 2, atol=1)


@pytest.mark.parametrize(("channels", "mode", "size"), [(1, "L", (3, 2)), (3, "RGB", (3, 2)), (4, "L", (12, 2))])
def test_a_picture_of_any_number_of_channels(
    api: TestClient, fake_worker: Any, channels: int, mode: str, size: tuple[int, int]
) -> None:
    array = np.zeros((channels, 2, 3), np.float32)
    job_id = computed(fake_worker, array, "epsilon")
    with Image.open(io.BytesIO(api.get(f"/jobs/{job_id}/images/0/epsilon.png").content)) as image:
        assert (image.mode, image.size) == (mode, size)
        assert image.convert("L").getextrema() == (128, 128)


def test_arrays_belong_to_their_owner_and_expire_with_the_job(
    make_client: Any, fake_worker: Any, card_of: Any, client: Any
) -> None:
    fake_worker.serve(card_of(pictures="start"))
    api = make_client(keys=("one-key-one-key-one-key", "two-key-two-key-two-key"))
    mine = computed(fake_worker, np.ones((1, 2, 2), np.float32))  # of nobody
    assert api.get(f"/jobs/{mine}/images/0/score.npy").status_code == 404
    key = f"denoised:job:{mine}:array:0:score"
    assert 0 < client.ttl(key) <= client.ttl(f"denoised:job:{mine}")
    for path in ("images/0/x0.npy", "images/1/score.npy", "images/0/score.webp"):
        assert make_client().get(f"/jobs/{mine}/{path}").status_code == 404
    assert make_client().get(f"/jobs/{mine}/images/0/nothing.npy").status_code in (404, 422)


@pytest.mark.parametrize("task", TASKS)
def test_a_body_without_a_picture_is_limited_like_any_other(api: TestClient, task: str) -> None:
    assert api.post(f"/{task}", json={"model": "x" * 300_000}).status_code == 413
