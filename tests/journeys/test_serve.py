"""`denoised serve` as a supervisor: its children, its startup errors and its shutdown."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import fork_server
from tests.journeys.conftest import GARMENTS

TIMEOUT = 300.0
SMALL_BATCH = {"DENOISED_MAX_BATCH": "16"}  # not measured by the worker


def _serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return _run("serve", *arguments)


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "denoised", *arguments]
    return fork_server.run(command, capture_output=True, text=True, timeout=TIMEOUT)


def _until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3] if Path("/proc").exists() else True


def test_children_are_named_and_restarted(service: Any) -> None:
    before = service.children()
    commands = " ".join(before.values())
    assert " api " in commands
    assert "worker" in commands
    assert "valkey" in commands
    worker = next(pid for pid, command in before.items() if "-m denoised.worker" in command)
    api = next(pid for pid, command in before.items() if "app api" in command)
    for pid in (worker, api):
        os.kill(pid, signal.SIGKILL)
    _until(lambda: not _alive(worker) and not _alive(api), "the children to exit")
    with service.client() as client:
        _until(lambda: _status(client, "/readyz") == 200, "new children")
        done = client.post("/generate", json={**GARMENTS, "steps": 2}, headers={"Prefer": "wait=60"})
        assert done.json()["status"] == "succeeded"


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one worker per core")
def test_every_device_has_a_worker_that_is_restarted_by_itself(
    start_service: Callable[..., Any], tmp_path: Path
) -> None:
    service = start_service(tmp_path / "data", "--devices", "cpu:2")
    with service.client() as client:

        def names() -> set[str]:
            return {worker["name"] for worker in client.get("/workers").json()["workers"]}

        _until(lambda: len(names()) == 2, "both workers")
        before = names()
        first, second = [pid for pid, command in service.children().items() if "-m denoised.worker" in command]
        os.kill(first, signal.SIGTERM)
        _until(lambda: len(names()) == 2 and len(names() & before) == 1, "another worker in place of the first")
        assert _alive(second)
        assert {worker["device"] for worker in client.get("/workers").json()["workers"]} == {"cpu"}


def test_devices_that_are_not_here_are_one_line(tmp_path: Path) -> None:
    refused = _serve("--port", str(_free_port()), "--data-dir", str(tmp_path), "--devices", "cpu:999")
    assert refused.returncode == 1
    assert refused.stderr.startswith("denoised serve: devices = 'cpu:999': this machine has ")
    assert refused.stderr.count("\n") == 1


def test_readiness_checks_during_startup_are_not_logged(service: Any) -> None:
    before, ready, _ = service.log.read_text().partition("denoised is ready on")
    assert ready
    assert '"event": "request"' not in before


@pytest.mark.parametrize("by", ["option", "variable"])
def test_an_invalid_model_folder_is_one_line_before_anything_starts(
    tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "unet").mkdir(parents=True)
    (tmp_path / "half" / "unet" / "config.json").write_text('{"sample_size": 8}')
    wrong = {"nope": ": no such model folder", "empty": ": is empty: a model folder contains unet/ and scheduler/"}
    wrong["half"] = "/scheduler/scheduler_config.json: missing"
    if by == "variable":  # the same check: one folder shows that the variable reaches it
        del wrong["empty"], wrong["half"]
    for name, words in wrong.items():
        monkeypatch.setenv("DENOISED_MODELS", str(tmp_path / name) if by == "variable" else "")
        given = ("--model", str(tmp_path / name)) if by == "option" else ()
        refused = _serve("--port", str(_free_port()), "--data-dir", str(tmp_path / "data"), *given)
        assert refused.returncode == 1
        assert refused.stderr == f"denoised serve: {tmp_path / name}{words}\n"
        assert refused.stdout == ""
        assert not (tmp_path / "data").exists()


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        refused = [_serve("--port", str(port), "--data-dir", str(tmp_path)), _run("api", "--port", str(port))]
    for each in refused:
        assert each.returncode == 1
        assert each.stderr.count("\n") == 1
        assert f"port {port} on 127.0.0.1" in each.stderr
        assert "--port" in each.stderr


def test_a_data_directory_in_use_is_one_line(tmp_path: Path) -> None:
    with (tmp_path / "serve.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = _serve("--port", str(_free_port()), "--data-dir", str(tmp_path))
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert str(tmp_path) in refused.stderr
    assert "--data-dir" in refused.stderr


def test_a_model_folder_that_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    refused = _serve("--port", str(_free_port()), "--data-dir", str(tmp_path / "d"), "--model", str(tmp_path / "none"))
    assert refused.returncode == 1
    assert f"{tmp_path / 'none'}: no such model folder" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGTERM],
        pytest.param([signal.SIGTERM, signal.SIGINT], marks=pytest.mark.slow),
    ],
    ids=len,
)
def test_stopping_during_a_job_leaves_no_process_and_the_next_start_resumes_the_job(
    signals: list[signal.Signals], start_service: Callable[..., Any], tmp_path: Path
) -> None:
    data_dir = tmp_path / ("a-folder-of-a-very-long-name-" * 4)  # too long for a Unix socket's 107 bytes
    service = start_service(data_dir, popen=subprocess.Popen, environment=SMALL_BATCH)
    with service.client() as client:
        job_id = client.post("/generate", json={**GARMENTS, "steps": 1000, "n": 4, "seed": 5}).json()["id"]
    for attempt, signum in enumerate(signals, start=1):
        _stop_during(service, job_id, attempt, signum)
        service = start_service(data_dir)
    with service.client() as client:
        _until(lambda: _job(client, job_id)["status"] == "running", "the job to resume")
        assert _job(client, job_id)["attempt"] == len(signals) + 1
        assert client.delete(f"/jobs/{job_id}").json()["status"] == "canceled"
    processes = service.children()
    assert service.stop(signal.SIGINT) == 0
    _until(lambda: not any(_alive(pid) for pid in processes), "every process to exit")


def _stop_during(service: Any, job_id: str, attempt: int, signum: int) -> None:
    """Stop a service after this attempt's first step; nothing of it is left."""
    processes = service.children()
    assert len(processes) >= 4
    with service.client() as client:
        _until(lambda: _job(client, job_id)["status"] == "running", "the job to run")
        step = _job(client, job_id)["progress"]["step"]
        _until(lambda: _job(client, job_id)["progress"]["step"] > step, "a step of this attempt")
        assert _job(client, job_id)["attempt"] == attempt
    assert service.stop(signum) == 0
    _until(lambda: not any(_alive(pid) for pid in processes), "every process to exit")


def _job(client: httpx.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
    return job


@pytest.mark.parametrize("popen", [fork_server.Popen, pytest.param(subprocess.Popen, marks=pytest.mark.slow)])
def test_killing_the_supervisor_stops_its_children(
    popen: type[subprocess.Popen[Any]], start_service: Callable[..., Any], tmp_path: Path
) -> None:
    service = start_service(tmp_path / "data", popen=popen, environment=SMALL_BATCH)
    processes = service.children()
    service.process.kill()
    service.process.wait()
    assert len(processes) >= 4
    _until(lambda: not any(_alive(pid) for pid in processes), "every process to exit")


def _status(client: httpx.Client, path: str) -> int:
    try:
        return client.get(path).status_code
    except httpx.HTTPError:
        return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
