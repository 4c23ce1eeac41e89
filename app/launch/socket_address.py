"""Where programs reach the embedded store: a Unix socket in the data directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from denoised.app.launch.errors import LaunchError

SOCKET = "valkey.sock"
MAX_SOCKET_PATH = 107  # bytes: sun_path without its terminating zero
SHORT_FOLDERS = ("/tmp", "/var/tmp")


@contextlib.contextmanager
def reachable_socket(data_dir: Path) -> Iterator[Path]:
    """The path by which clients reach the socket in a data directory.

    A path that is too long for a socket, or not UTF-8 as a URL must be, is replaced by one through a symbolic link in a
    private temporary folder. The socket itself is always in the data directory, where the next start finds it.

    Raises:
        LaunchError: if no short temporary folder can be written.
    """
    if _fits(data_dir / SOCKET):
        yield data_dir / SOCKET
        return
    folder = _private_folder()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # systemd-tmpfiles removes old folders, except locked ones
        (folder / "data").symlink_to(data_dir.absolute())
        yield folder / "data" / SOCKET
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def socket_url(path: Path) -> str:
    """A socket path as a Redis URL."""
    return f"unix://{quote(str(path))}"


def _fits(path: Path) -> bool:
    raw = os.fsencode(path)
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return len(raw) <= MAX_SOCKET_PATH


def _private_folder() -> Path:
    for base in (tempfile.gettempdir(), *SHORT_FOLDERS):
        try:
            folder = Path(tempfile.mkdtemp(prefix="denoised-", dir=base))
        except OSError:
            continue
        if _fits(folder / "data" / SOCKET):
            return folder
        folder.rmdir()
    raise LaunchError("no temporary folder with a short path can be written: set TMPDIR to one")
