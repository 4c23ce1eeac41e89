"""`denoised serve`: store, API and worker as supervised child processes of one command."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

from denoised.app.launch import embedded_store as embedded
from denoised.app.settings import TORCH_ENVIRONMENT
from denoised.jobs.connection import connect
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.store import Store
from denoised.model.checkpoints.folders import find_files, read_json
from denoised.model.errors import CheckpointError

log = logging.getLogger("denoised.serve")

STOP_SECONDS = 12.0
BACKOFF = (0.2, 5.0)  # first and longest pause before a child is started again
HEALTHY_SECONDS = 10.0
PR_SET_PDEATHSIG = 1
KEYLESS = {"DENOISED_API_KEYS": ""}  # of children that have no use for the keys


class ServeError(Exception):
    """The service cannot start; one line says why and what to do."""


class ChildRefused(ServeError):
    """A child ended with exit code 1, its reason on stderr: nothing is to be added."""


@dataclass(frozen=True)
class ServeSettings:
    """worker_arguments: passed on to `denoised worker`; models: the folders that it will serve beside the bundled ones;
    redis_url: None = start a Valkey; keys: whether API keys are wanted."""

    host: str
    port: int
    data_dir: Path
    redis_url: str | None
    worker_arguments: Sequence[str] = ()
    trust_network: bool = False
    models: Sequence[Path] = ()
    keys: bool = False


@dataclass
class Child:
    """A program that is kept running."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restart_at: float = 0.0
    pause: float = BACKOFF[0]

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        self.started = time.monotonic()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll() if self.process is not None else None

    def stop(self, timeout: float) -> None:
        """SIGTERM, and SIGKILL when that was not enough."""
        if self.process is None or self.exit_code is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Supervisor:
    """Starts children in order, starts one again when it dies, stops them in reverse order."""

    say: Callable[[str], None]
    children: list[Child] = field(default_factory=list)
    stopping: bool = False

    def start(self, child: Child) -> None:
        self.children.append(child)
        child.start()

    def watch(self) -> None:
        """Keep the children running until a signal comes."""
        while not self.stopping:
            for child in self.children:
                self._revive(child)
            time.sleep(0.1)

    def wait_until(self, ready: Callable[[], bool], what: str, timeout: float) -> None:
        """Wait for a condition while every child lives.

        Raises:
            ChildRefused: when a child ends as programs here do that have said why.
            ServeError: when it ends in another way or the time is up.
        """
        end = time.monotonic() + timeout
        while not ready():
            for child in self.children:
                if child.exit_code == 1 and not self.stopping:
                    raise ChildRefused(f"the {child.name} would not start")
                if child.exit_code is not None and not self.stopping:
                    raise ServeError(f"the {child.name} ended with exit code {child.exit_code} before {what}")
            if self.stopping:
                return
            if time.monotonic() > end:
                raise ServeError(f"{what} took longer than {timeout:g} s")
            time.sleep(0.05)

    def stop(self) -> None:
        """The store last, since the others write to it until they end."""
        store, others = [c for c in self.children if c.name == "store"], [c for c in self.children if c.name != "store"]
        for child in others:
            if child.process is not None and child.exit_code is None:
                child.process.terminate()
        for child in (*others, *store):
            child.stop(STOP_SECONDS)

    def _revive(self, child: Child) -> None:
        code, now = child.exit_code, time.monotonic()
        if code is None:
            if now - child.started > HEALTHY_SECONDS:
                child.pause = BACKOFF[0]
            return
        if child.restart_at < child.started:
            log.warning("child ended; it is started again", extra={"child": child.name, "reason": _reason(code)})
            child.restart_at = now + child.pause
            child.pause = min(child.pause * 2, BACKOFF[1])
        elif now >= child.restart_at:
            child.start()


def serve(settings: ServeSettings, say: Callable[[str], None]) -> None:
    """Run everything until SIGINT or SIGTERM.

    Raises:
        ServeError: when something stands in the way.
    """
    _check_models(settings.models)
    check_port(settings.host, settings.port)
    with Claim(settings.data_dir):
        supervisor = Supervisor(say)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: _request_stop(supervisor))
        try:
            _start_all(supervisor, settings)
            if not supervisor.stopping:
                say(greeting(settings.host, settings.port, settings.keys))
            supervisor.watch()
            say("stopping …")
        finally:
            supervisor.stop()


def greeting(host: str, port: int, keys: bool) -> str:
    """The address, and a line to paste. keys: whether API keys are wanted: an address that is opened carries none."""
    url = address(host, port)
    docs = "playground/docs.html" if keys else "docs"
    bearer = """-H "Authorization: Bearer $DENOISED_API_KEY" """ if keys else ""
    return (
        f"denoised is ready on {url} (docs: {url}/{docs}, stop: Ctrl-C)\n"
        f"  curl -sS {url}/generate {bearer}-H 'Content-Type: application/json' -H 'Accept: image/png' "
        """-d '{"label": "sneaker"}' -o sneaker.png"""
    )


def address(host: str, port: int) -> str:
    """Where a program on this machine reaches the server."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def _start_all(supervisor: Supervisor, settings: ServeSettings) -> None:
    redis_url = settings.redis_url
    if redis_url is None:
        redis_url = _start_store(supervisor, settings.data_dir)
    environment = {"REDIS_URL": redis_url}
    worker_environment = TORCH_ENVIRONMENT | os.environ | environment | KEYLESS
    api = [sys.executable, "-P", "-m", "denoised.app", "api", "--host", settings.host, "--port", str(settings.port)]
    api += ["--trust-network"] if settings.trust_network else []
    worker = [sys.executable, "-P", "-m", "denoised.worker", *settings.worker_arguments]
    supervisor.start(Child("api", api, environment))
    supervisor.start(Child("worker", worker, worker_environment))
    url = address(settings.host, settings.port)
    supervisor.wait_until(lambda: _is_ready(url), "the service was ready", timeout=180)


def _start_store(supervisor: Supervisor, data_dir: Path) -> str:
    try:
        path = embedded.socket_path(data_dir)
    except OSError as error:
        raise ServeError(str(error)) from error
    command = [sys.executable, "-P", "-m", "denoised.app", "store", "--data-dir", str(data_dir), "--socket", str(path)]
    supervisor.start(Child("store", command, KEYLESS))
    url = embedded.socket_url(path)
    supervisor.wait_until(lambda: _answers(url), "the store answered", timeout=60)
    return url


def _answers(url: str) -> bool:
    try:
        Store(connect(url)).ping()
    except StoreUnavailable:
        return False
    return True


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _check_models(folders: Sequence[Path]) -> None:
    """What a worker would refuse seconds later, as far as it can be seen without torch."""
    try:
        for folder in folders:
            layout = find_files(folder)
            for config in (layout.unet_config, layout.scheduler_config):
                read_json(config)
    except CheckpointError as error:
        raise ServeError(str(error)) from error


def check_port(host: str, port: int) -> None:
    """Nothing, when a server may listen there.

    Raises:
        ServeError: when it may not.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise ServeError(
            f"port {port} on {host} cannot be used ({error.strerror}): choose another with --port"
        ) from error


class Claim:
    """The data directory, made and locked for this process alone."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir
        self._file: IO[str] | None = None

    def __enter__(self) -> None:
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = (self._path / "serve.lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise ServeError(
                f"data directory {self._path} cannot be used ({error.strerror}): name another with --data-dir"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            raise ServeError(
                f"data directory {self._path} is served already (process {holder}): stop that, "
                "or name another with --data-dir"
            ) from error
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()


def _request_stop(supervisor: Supervisor) -> None:
    supervisor.stopping = True


def _die_with_parent() -> None:
    """In the child: SIGTERM when the supervisor is gone, however it went."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _reason(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
