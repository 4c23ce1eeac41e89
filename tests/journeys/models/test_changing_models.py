"""`denoised models add`, `remove` and `reload` against a service whose worker watches a folder of real models."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from denoised.model.serving.loading import ZOO
from tests import fork_server
from tests.journeys.conftest import Service, wait_for

DIGITS = {"label": "7", "steps": 4, "seed": 3, "sampler": "ddim"}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Service], watched: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    environment = {"DENOISED_MODELS_FOLDER": str(watched), "DENOISED_LEASE": "2"}
    return start_service(tmp_path_factory.mktemp("service") / "data", environment=environment)


def run(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "denoised", "models", *arguments, "--url", service.url]
    return fork_server.run(command, capture_output=True, text=True, env=dict(os.environ))


def picture(service: Service, model: str) -> dict[str, Any]:
    """The finished job of a request."""
    with service.client() as client:
        answer = client.post("/generate", json={**DIGITS, "model": model}, headers={"Prefer": "wait=60"})
        finished: dict[str, Any] = answer.json()
        return finished


def pixels(service: Service, model: str) -> bytes:
    with service.client() as client:
        content = client.get(picture(service, model)["images"][0]["url"]).content
    return Image.open(io.BytesIO(content)).tobytes()


def names(service: Service) -> list[str]:
    """Of the live workers."""
    with service.client() as client:
        return [worker["name"] for worker in client.get("/workers").json()["workers"]]


def listed(service: Service) -> list[str]:
    with service.client() as client:
        return [model["name"] for model in client.get("/models").json()]


def test_a_folder_on_this_machine_is_added_reloaded_removed_and_added_again(service: Service, watched: Path) -> None:
    own = watched.parent / "own-models" / "numbers"
    shutil.copytree(ZOO / "digits", own)
    added = run(service, "add", str(own), "--models-folder", str(watched))
    assert (added.returncode, added.stdout) == (0, "numbers is served by 1 worker(s)\n"), added.stderr
    assert (watched / "numbers").is_symlink()
    wait_for(lambda: "numbers" in listed(service), "the model")
    assert pixels(service, "numbers") == pixels(service, "digits"), "the same weights"
    (own / "scheduler" / "scheduler_config.json").unlink()
    refused = run(service, "reload", "numbers", "--json")
    assert refused.returncode == 1
    (worker,) = json.loads(refused.stdout)["workers"]
    assert worker["state"] == "serving", "the old weights"
    assert "scheduler_config.json" in worker["reason"]
    assert picture(service, "numbers")["images"] != []
    shutil.copytree(ZOO / "digits", own, dirs_exist_ok=True)
    assert run(service, "reload", "numbers").returncode == 0
    removed = run(service, "remove", "numbers")
    assert (removed.returncode, removed.stdout) == (0, "numbers was removed\n")
    wait_for(lambda: "numbers" not in listed(service), "the removal")
    assert run(service, "add", "numbers").returncode == 0
    assert picture(service, "numbers")["status"] == "succeeded"


def test_a_bundled_model_is_removed_until_it_is_added_although_the_worker_starts_again(service: Service) -> None:
    assert run(service, "remove", "digits").returncode == 0
    before = names(service)
    (pid,) = [pid for pid, command in service.children().items() if "-m denoised.worker" in command]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(names(service)) == 1 and names(service) != before, "the next worker")
    wait_for(lambda: "digits" not in listed(service), "the order")
    assert run(service, "add", "digits").returncode == 0
    assert picture(service, "digits")["status"] == "succeeded"


def test_wrong_orders_are_one_line(service: Service, watched: Path) -> None:
    unknown = run(service, "reload", "nothing")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "no worker has, or ever had, a model" in unknown.stderr
    elsewhere = run(service, "add", str(ZOO / "digits"))
    assert (elsewhere.returncode, elsewhere.stderr.count("\n")) == (1, 1)
    assert "--models-folder" in elsewhere.stderr
    two = run(service, "digits", "emoji")
    assert (two.returncode, two.stderr.count("\n")) == (2, 1)
