"""Names on a hub in the real programs: `denoised pull`, `serve --model OWNER/NAME`, and what they refuse."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from denoised.app.launch.errors import ChildStartError
from denoised.app.launch.preflight import find_model
from tests import fork_server
from tests.hub_server import HubRepository, HubServer, hub_server, read_folder
from tests.text_pipelines import PROMPT, save_pipeline

TOKEN = "hf_right"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    folder = tmp_path_factory.mktemp("pipeline")
    save_pipeline(folder)
    with hub_server() as server:
        server.repositories["owner/tiny"] = HubRepository(read_folder(folder), gated=True)
        yield server


@pytest.fixture
def environment(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "denoised", *arguments]
    return fork_server.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def test_pull_prints_the_folder_and_reports_on_stderr(hub: HubServer, environment: dict[str, str]) -> None:
    done = run(environment, "pull", "owner/tiny")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert (folder / "unet" / "config.json").exists()
    assert folder.is_relative_to(environment["HF_HOME"])
    lines = done.stderr.splitlines()
    assert lines[0].endswith("to download; license: openrail++, gated")
    assert lines[1].startswith("owner/tiny: ")
    assert "(100 %)" in lines[1]
    assert len(lines) == 2
    assert TOKEN not in done.stdout + done.stderr


def test_pull_refuses_in_one_line(hub: HubServer, environment: dict[str, str]) -> None:
    hint = "write OWNER/NAME or OWNER/NAME@REVISION (see denoised pull --help)"
    expected = {
        "owner/none": (1, f"there is no model owner/none on {hub.url} (a private one needs HF_TOKEN)"),
        "models/a/b": (2, f"Invalid value: 'models/a/b' is not a model name: {hint}"),
    }
    for name, (code, message) in expected.items():
        done = run(environment, "pull", name)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr == f"denoised pull: {message}\n"


def test_serve_refuses_before_it_starts_anything(hub: HubServer, environment: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    done = run(environment, "serve", "--port", port, "--data-dir", str(tmp_path / "data"), "--model", "owner/none")
    assert done.returncode == 1
    assert done.stderr == f"denoised pull: there is no model owner/none on {hub.url} (a private one needs HF_TOKEN)\n"


def test_the_front_end_finds_a_model_through_a_child(
    hub: HubServer, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    folder = find_model("owner/tiny", "float32")
    assert (Path(folder) / "model_index.json").exists()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_model("owner/tiny", "float32") == folder
    with pytest.raises(ChildStartError, match="owner/other is not a folder here, and cannot be downloaded"):
        find_model("owner/other", "float32")
    (tmp_path / "owner" / "other").mkdir(parents=True)
    assert find_model("owner/other", "float32") == "owner/other"
    assert find_model("./owner/gone", "float32") == "./owner/gone"


@pytest.mark.slow
def test_a_model_on_the_hub_is_served_under_its_name(
    hub: HubServer, environment: dict[str, str], start_service: Callable[..., Any], tmp_path: Path
) -> None:
    service = start_service(tmp_path / "data", "--model", "owner/tiny", environment=environment)
    with service.client() as client:
        assert "tiny" in [model["name"] for model in client.get("/models").json()]
        body = {"model": "tiny", "prompt": PROMPT, "seed": 1, "steps": 2}
        answer = client.post("/generate", json=body, headers={"Accept": "image/png"})
    assert answer.status_code == 200
    assert "to download; license: openrail++" in service.log.read_text()
