"""Jobs with ControlNets whose worker is killed, and those that are canceled while they run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.control_nets import control_image, controlled_pipeline
from tests.journeys.conftest import wait_for
from tests.journeys.models.test_control_nets import control
from tests.text_pipelines import PROMPT

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers

MODEL = "tiny-sd"
STEPS = 900
EDGES, POSE = control_image(1), control_image(2)
CONTROLS = [control("edges", EDGES, scale=0.7), control("pose", POSE, end=0.5)]
LONG: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "seed": 5, "n": 2, "steps": STEPS, "sampler": "ddim"}


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = controlled_pipeline(tmp_path_factory.mktemp("pipelines"), MODEL)
    return start_service(tmp_path_factory.mktemp("killed") / "data", *options)


def submit(service: Any, **fields: Any) -> str:
    with service.client() as client:
        return str(client.post("/generate", json={**LONG, **fields}).json()["id"])


def job_of(service: Any, job_id: str) -> dict[str, Any]:
    with service.client() as client:
        return dict(client.get(f"/jobs/{job_id}").json())


def finished(service: Any, job_id: str) -> dict[str, Any]:
    wait_for(lambda: job_of(service, job_id)["status"] not in ("queued", "running"), "the end of a job")
    job = job_of(service, job_id)
    assert job["status"] == "succeeded", job["error"]
    return job


def digests(job: dict[str, Any]) -> list[str]:
    return [image["sha256"] for image in job["images"]]


def events(service: Any, job_id: str) -> list[dict[str, Any]]:
    with service.client() as client:
        text = client.get(f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}).text
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def test_a_job_that_is_canceled_leaves_the_others_their_bytes(service: Any) -> None:
    short = {"steps": 40, "seed": 7, "controls": CONTROLS[:1]}
    expected = digests(finished(service, submit(service, **short)))
    canceled, other = submit(service, controls=CONTROLS), submit(service, **short)
    wait_for(lambda: job_of(service, canceled)["progress"]["step"] > 0, "its first step")
    with service.client() as client:
        assert client.delete(f"/jobs/{canceled}").json()["status"] == "canceled"
    assert digests(finished(service, other)) == expected
    assert job_of(service, canceled)["images"] == []


@pytest.mark.faults
def test_a_job_whose_worker_is_killed_continues_with_its_control_nets(service: Any) -> None:
    expected = digests(finished(service, submit(service, controls=CONTROLS)))
    job_id = submit(service, controls=CONTROLS)
    wait_for(lambda: job_of(service, job_id)["progress"]["step"] > STEPS // 2, "half of its steps")
    (worker,) = [pid for pid, command in service.children().items() if "-m denoised.worker" in command]
    os.kill(worker, signal.SIGKILL)
    job = finished(service, job_id)
    assert (job["attempt"], digests(job)) == (2, expected)
    later = [
        event["step"] for event in events(service, job_id) if event["attempt"] == 2 and event["type"] == "progress"
    ]
    assert later[0] > 1, "it continues at its resume point"
    assert [each["name"] for each in job["controls"]] == ["edges", "pose"]
