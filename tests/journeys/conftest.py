"""The whole service as a user starts it, and helpers for its processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import fork_server

TIMEOUT = 300.0  # seconds; exceeded only if something hangs
GARMENTS = {"model": "fashion-mnist"}  # fast, whichever models are bundled


@dataclass
class Service:
    """A running `denoised serve`."""

    url: str
    process: subprocess.Popen[Any]
    data_dir: Path
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=TIMEOUT, trust_env=False, verify=False)

    def children(self) -> dict[int, str]:
        """Process ids and command lines of all its descendants."""
        return descendants(self.process.pid)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(TIMEOUT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> dict[int, str]:
    """Living descendants of a process, by pid, with their command lines."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 3) for line in listing.stdout.splitlines()]
    found: dict[int, str] = {}
    parents = {pid}
    while parents:
        level = {int(row[0]): row[3] for row in rows if int(row[1]) in parents and not row[2].startswith("Z")}
        found |= level
        parents = set(level)
    return found


def wait_for(condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)


@contextmanager
def starting_services() -> Iterator[Callable[..., Service]]:
    """A function that starts `denoised serve` with arguments, environment and working directory; all are stopped at
    the end.

    popen: `subprocess.Popen` starts the command as a user does. By default, the programs are forked
        (`tests/fork_server.py`), and the worker does not measure its largest batch.
    """
    started: list[Service] = []

    def start(
        data_dir: Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
        popen: type[subprocess.Popen[Any]] = fork_server.Popen,
    ) -> Service:
        port = free_port()
        data_dir.mkdir(parents=True, exist_ok=True)
        log = data_dir.parent / f"{data_dir.name[:40]}.log"
        command = [sys.executable, "-P", "-m", "denoised", "serve", "--port", str(port), "--data-dir", str(data_dir)]
        batch = {} if popen is subprocess.Popen else {"DENOISED_MAX_BATCH": "16"}
        given = {**batch, **os.environ, **(environment or {})}
        with log.open("w") as file:
            process = popen([*command, *arguments], stdout=file, stderr=file, text=True, env=given, cwd=folder)
        service = Service(f"http://127.0.0.1:{port}", process, data_dir, log)
        started.append(service)
        wait_for(lambda: "is ready on" in log.read_text() or process.poll() is not None, "the service")
        assert process.poll() is None, log.read_text()
        return service

    yield start
    for service in started:
        service.stop()


@pytest.fixture(scope="module")
def start_service() -> Iterator[Callable[..., Service]]:
    """`start_service(data_dir, *arguments, …)`, see `starting_services`. They run until the module's last test: also
    without requests, a service takes one or two hundredths of a core."""
    with starting_services() as start:
        yield start


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service that tests share; they leave it running."""
    with starting_services() as start:
        yield start(tmp_path_factory.mktemp("service") / "data")
