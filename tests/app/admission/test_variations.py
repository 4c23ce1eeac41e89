"""A variation has the request of an image, and a part of its noise."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient


def errors(answer: Any) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {error["field"]: error["message"] for error in answer.json()["errors"]}


@pytest.fixture
def finished(api: TestClient, fake_worker: Any) -> dict[str, Any]:
    body = {"label": "sneaker", "seed": 11, "steps": 7, "sampler": "ddpm", "guidance_interval": [0.1, 2]}
    job: dict[str, Any] = api.post("/generate", json=body).json()
    fake_worker.finish(job["id"], fake_worker.start(job["id"]))
    return job


def test_a_variation_has_the_fields_of_the_image(api: TestClient, finished: dict[str, Any]) -> None:
    name = f"job:{finished['id']}/images/0"
    answer = api.post("/generate", json={"variation": name, "n": 3})
    assert answer.status_code == 202, answer.text
    made = answer.json()
    kept = ("model", "label", "steps", "sampler", "guidance_scale", "guidance_interval")
    assert {field: made[field] for field in kept} == {field: finished[field] for field in kept}
    assert (made["n"], made["seed_to"], made["mix"]) == (3, 11, 0.8)
    assert made["seed"] != 11
    other = api.post("/generate", json={"variation": name, "mix": 0.5, "steps": 3, "label": None, "seed": 2}).json()
    assert (other["mix"], other["steps"], other["label"], other["seed"]) == (0.5, 3, "sneaker", 2)


def test_only_a_finished_image_of_one_seed_can_be_varied(api: TestClient, finished: dict[str, Any]) -> None:
    name = f"job:{finished['id']}/images/0"
    assert "names no image" in errors(api.post("/generate", json={"variation": finished["id"]}))["variation"]
    assert "has no image 1" in errors(api.post("/generate", json={"variation": name[:-1] + "1"}))["variation"]
    assert "not found" in errors(api.post("/generate", json={"variation": "job:0/images/0"}))["variation"]
    waiting = api.post("/generate", json={"variation": name}).json()["id"]
    waiting_name = f"job:{waiting}/images/0"
    assert "(queued) has no image 0" in errors(api.post("/generate", json={"variation": waiting_name}))["variation"]


def test_a_variation_of_a_variation_is_refused(api: TestClient, finished: dict[str, Any], fake_worker: Any) -> None:
    made = api.post("/generate", json={"variation": f"job:{finished['id']}/images/0"}).json()["id"]
    fake_worker.finish(made, fake_worker.start(made))
    answer = api.post("/generate", json={"variation": f"job:{made}/images/0"})
    assert "is a mixture itself" in errors(answer)["variation"]


def test_mix_needs_a_second_seed(api: TestClient) -> None:
    assert errors(api.post("/generate", json={"mix": 0.3})) == {"mix": "0.3 needs seed_to or variation"}
    answer = api.post("/generate", json={"seed": 1, "seed_to": 5, "mix": 0.3}).json()
    assert (answer["seed_to"], answer["mix"]) == (5, 0.3)
