"""The lock on the data directory: one `denoised serve` per directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from denoised.app.launch.errors import LaunchError

LOCK_FILE = "serve.lock"


class DataDirectoryLock:
    """Creates the data directory and locks it for this process, as a context manager.

    Raises:
        LaunchError: if the directory cannot be used, or another process holds the lock.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir
        self._file: IO[str] | None = None

    def __enter__(self) -> None:
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = (self._path / LOCK_FILE).open("a+", encoding="utf-8")
        except OSError as error:
            raise LaunchError(
                f"data directory {self._path} cannot be used ({error.strerror}): choose another with --data-dir"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            raise LaunchError(
                f"data directory {self._path} is already in use (process {holder}): stop that process, "
                "or choose another directory with --data-dir"
            ) from error
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()


def is_locked(data_dir: Path) -> bool:
    """Whether a `denoised serve` runs on a data directory. Creates nothing."""
    try:
        with (data_dir / LOCK_FILE).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
