"""The lock on the embedded store's folder: at most one Valkey writes there."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path
from types import TracebackType

import redis

from denoised.app.launch.errors import LaunchError
from denoised.app.launch.socket_address import socket_url
from denoised.jobs.redis.connection import connect

LOCK_FILE = "store.lock"
SHUTDOWN_SECONDS, KILL_SECONDS, ANSWER_SECONDS = 10.0, 5.0, 5.0


class StoreLock:
    """A file lock that the Valkey process inherits: it is held until that process ends, however it ends.

    A context manager; leaving it closes this process's file only.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> StoreLock:
        self._file = (self._folder / LOCK_FILE).open("a+", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def fileno(self) -> int:
        """The file to inherit."""
        return self._file.fileno()

    def write_pid(self, pid: int) -> None:
        """Record the process that holds the lock."""
        self._file.truncate(0)
        self._file.write(f"{pid}\n")
        self._file.flush()

    def acquire(self, socket: Path) -> None:
        """Take the lock. A Valkey whose parent was killed is stopped first; no other program waits for it, because the
        caller holds the lock on the data directory.

        Raises:
            LaunchError: if the folder stays locked.
        """
        _shut_down(socket)
        if self._acquired_within(SHUTDOWN_SECONDS):
            return
        pid = self._holder()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            if self._acquired_within(KILL_SECONDS):
                return
        raise LaunchError(f"{self._folder} is in use by another Valkey (process {pid or 'unknown'}): stop that process")

    def _acquired_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    return False
                time.sleep(0.05)
            else:
                return True

    def _holder(self) -> int | None:
        """The recorded process, if it still runs in this folder; the number alone may be another process's by now."""
        self._file.seek(0)
        pid = self._file.read().strip()
        try:
            return int(pid) if Path(f"/proc/{pid}/cwd").samefile(self._folder) else None
        except (OSError, ValueError):
            return None


def _shut_down(socket: Path) -> None:
    """Ask the server on the socket, if any, to exit. It has written everything to its append-only file already."""
    client = connect(socket_url(socket), ANSWER_SECONDS)
    try:
        client.shutdown(nosave=True)
    except redis.exceptions.RedisError:
        pass
    finally:
        client.close()
    end = time.monotonic() + SHUTDOWN_SECONDS
    while time.monotonic() < end:
        try:
            client.ping()
        except redis.exceptions.RedisError:
            return
        time.sleep(0.05)
