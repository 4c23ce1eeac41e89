"""`--devices`: which workers it starts, what each sees, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from denoised.app.launch import devices, diagnostics
from denoised.app.launch.child import Child
from denoised.app.launch.cores import available_cores, split_cores
from denoised.app.launch.devices import find_devices, list_cuda_devices
from denoised.app.launch.diagnostics import Finding
from denoised.app.launch.errors import LaunchError
from denoised.app.launch.serve import worker_child
from denoised.app.launch.serve_settings import ServeSettings
from denoised.worker.devices import cuda_identifiers, device_label

CORES = len(available_cores())


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two CUDA devices; the second one is called by its id."""
    monkeypatch.setattr(devices, "list_cuda_devices", lambda: ["0", "GPU-5f"])


def test_without_devices_there_is_one_worker_as_device_says() -> None:
    (device,) = find_devices(None)
    child = worker_child(ServeSettings("h", 1, Path(), None, ["--device", "mps"]), ["m"], device, {"REDIS_URL": "r"})
    assert (child.name, child.arguments, child.cores) == ("worker", ["--device", "mps", "--model", "m"], None)
    assert child.environment["REDIS_URL"] == "r"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("text", "seen"),
    [("all", ["0", "GPU-5f"]), ("0,1", ["0", "GPU-5f"]), ("1", ["GPU-5f"]), (" 1 , 0 ", ["GPU-5f", "0"])],
)
def test_each_worker_sees_one_cuda_device(text: str, seen: list[str]) -> None:
    children = [
        worker_child(ServeSettings("h", 1, Path(), None, ["--device", "cpu"]), [], device, {})
        for device in find_devices(text)
    ]
    assert [child.environment["CUDA_VISIBLE_DEVICES"] for child in children] == seen
    assert [child.name for child in children] == [f"worker cuda:{each}" for each in seen]
    assert all(child.arguments == ["--device", "cpu", "--device", "cuda"] for child in children), "the last one counts"


@pytest.mark.usefixtures("two_gpus")
def test_cuda_devices_and_the_cpu_serve_together() -> None:
    assert [device.name for device in find_devices("all,cpu")] == ["cuda:0", "cuda:GPU-5f", "cpu"]


@pytest.mark.parametrize("count", range(1, CORES + 1))
def test_workers_on_the_cpu_share_cores_and_threads(count: int) -> None:
    found = find_devices(f"cpu:{count}")
    shares = [device.cores or frozenset() for device in found]
    assert sorted(core for share in shares for core in share) == sorted(available_cores())
    threads = [list(device.arguments)[-2:] for device in found]
    assert threads == [["--threads", str(len(share))] for share in shares]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2", "device 2 is not here: the CUDA devices are 0 to 1"),
        ("0,0", "devices = '0,0' names one twice: name each once"),
        ("cpu:0", f"devices = 'cpu:0': this machine has {CORES} cores for as many workers at most"),
        ("cpu:9999", f"devices = 'cpu:9999': this machine has {CORES} cores for as many workers at most"),
        *[
            (text, f"devices = {text!r} cannot be read: allowed are all, numbers of CUDA devices as in 0,1, or cpu:2")
            for text in ("", "cuda", "-1", "0;1", "cpu:1,cpu:2", "cpu:x", "²")
        ],
    ],
)
def test_what_is_not_a_device_is_refused(text: str, message: str) -> None:
    with pytest.raises(LaunchError) as refused:
        find_devices(text)
    assert str(refused.value) == message


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA devices is refused")
def test_without_a_cuda_device_the_cpu_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list_cuda_devices()  # a process that imports torch, so only once
    assert found == []
    monkeypatch.setattr(devices, "list_cuda_devices", lambda: found)
    for text in ("all", "0"):
        with pytest.raises(LaunchError, match="no CUDA device is available here: use --devices cpu:1"):
            find_devices(text)


def test_devices_that_cannot_be_listed_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LaunchError, match=re.escape("cannot be listed (CalledProcessError): run denoised doctor")):
        list_cuda_devices()


@pytest.mark.parametrize(
    ("visible", "found"),
    [(None, ["0", "1", "2"]), ("2,0,1", ["2", "0", "1"]), ("MIG-a, GPU-b,5", ["MIG-a", "GPU-b", "5"])],
)
def test_devices_keep_their_names_within_visible_ones(
    visible: str | None, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cuda_identifiers() == found
    assert device_label("cuda") == f"cuda:{found[0]}"
    assert device_label("cuda:1") == f"cuda:{found[1]}"
    assert device_label("cpu") == "cpu"


def test_siblings_of_a_physical_core_belong_to_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packages of two cores with two threads each, numbered as Linux does: the second threads last."""
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{cpu // 2 % 2}\n")
        (folder / "core_id").write_text(f"{cpu % 2}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert split_cores(available_cores(tmp_path), 4) == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]
    assert split_cores(available_cores(tmp_path), 2) == [{0, 1, 4, 5}, {2, 3, 6, 7}]
    assert available_cores(tmp_path / "none") == list(range(8))


def test_uneven_shares_differ_by_one_core() -> None:
    assert [len(share) for share in split_cores(range(7), 3)] == [2, 2, 3]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the platform pins no process")
def test_a_child_runs_on_its_cores_alone() -> None:
    core = available_cores()[-1]
    child = Child("pinned", "timeit", ["-n", "1", "-r", "1", "import time; time.sleep(60)"], cores=frozenset({core}))
    child.start()
    try:
        assert child._process is not None
        assert os.sched_getaffinity(child._process.pid) == {core}
    finally:
        child.stop(5)


def test_doctor_loads_the_models_once_and_names_the_device_of_each_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if CORES < 2:
        pytest.skip("one worker per core")
    calls: list[list[str]] = []

    def checked(arguments: list[str], device: Any) -> list[Finding]:
        calls.append(arguments)
        return [Finding("device", "ok", device.name)]

    monkeypatch.setattr(diagnostics, "_check_worker", checked)
    settings = ServeSettings("127.0.0.1", 0, tmp_path, None, ["--model", "m"], devices="cpu:2")
    found = list(diagnostics._check_workers(settings))
    assert [(each.check, each.message) for each in found] == [("device cpu:0", "cpu:0"), ("device cpu:1", "cpu:1")]
    assert ["--without-models" in arguments for arguments in calls] == [False, True]
    (problem,) = diagnostics._check_workers(ServeSettings("127.0.0.1", 0, tmp_path, None, devices="gpu"))
    assert (problem.check, problem.state) == ("devices", "problem")


def test_the_checks_of_a_device_alone_load_no_model() -> None:
    command = [sys.executable, "-m", "denoised.worker.diagnostics", "--device", "cpu", "--threads", "1"]
    done = subprocess.run([*command, "--without-models"], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["check"] for each in found] == ["device", "cuda", "threads"]
    assert found[2]["message"].startswith("1 threads for the network")
