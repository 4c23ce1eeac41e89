"""What is checked before anything starts. `serve` and `api` refuse to start with it, and `doctor` reports the same."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from denoised.app.http.requests.local_hosts import is_local
from denoised.app.launch.addresses import check_bindable
from denoised.app.launch.child import die_with_parent
from denoised.app.launch.errors import ChildStartError, LaunchError, StoreAbsent
from denoised.jobs.errors import StoreError, StoreUnavailable
from denoised.jobs.redis.connection import connect
from denoised.jobs.redis.fitness import check_fitness
from denoised.jobs.results.result_store import ResultStore
from denoised.jobs.store.store import Store

FULL_DISK = 100 * 1024**2  # free bytes
EARLIEST_TIME = 1_735_689_600  # 2025-01-01: an earlier clock was never set
STORE_TIMEOUT = 5.0  # seconds
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@.+)?", re.ASCII)  # OWNER/NAME[@REVISION]


def check_host(host: str, requires_key: bool, trusted: bool) -> None:
    """Check that without API keys only this machine is served.

    trusted: something else controls access.

    Raises:
        LaunchError: if everybody would be served.
    """
    if not requires_key and not trusted and not is_local(host.strip("[]")):
        raise LaunchError(
            f"--host {host} would serve the whole network without API keys: set DENOISED_API_KEYS, or pass "
            "--trust-network if something else controls access"
        )


def check_port(host: str, port: int) -> None:
    """Check that a server can listen on a host's port.

    Raises:
        LaunchError: if it cannot.
    """
    try:
        check_bindable(host, port)
    except (socket.gaierror, UnicodeError) as error:
        raise LaunchError(f"--host {host} is not an address or a known name: choose another") from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise LaunchError(f"--host {host} is not an address of this machine: choose another") from error
        raise LaunchError(
            f"port {port} on {host} cannot be used ({error.strerror}): choose another with --port"
        ) from error


def check_data_dir(data_dir: Path) -> int:
    """Check that a data directory can be written and has room. Creates no folder and leaves no file.

    Returns:
        The free bytes.

    Raises:
        LaunchError: if it cannot be used, or the disk is full.
    """
    try:
        existing = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise LaunchError(
            f"data directory {data_dir} cannot be used ({error.strerror}): choose another with --data-dir"
        ) from error
    if free < FULL_DISK:
        raise LaunchError(
            f"the disk of {data_dir} has only {free // 1024**2} MiB left: free {FULL_DISK // 1024**2} MiB, or choose "
            "another with --data-dir"
        )
    return free


def check_clock() -> None:
    """Check that the clock was set: results expire by it.

    Raises:
        LaunchError: if it is before 2025.
    """
    if time.time() < EARLIEST_TIME:
        raise LaunchError(
            f"the clock says {time.strftime('%Y-%m-%d', time.gmtime())}: set it, because results expire by it"
        )


def check_store(redis_url: str) -> None:
    """Check that an external Redis answers and is one that we can work with.

    Raises:
        StoreAbsent: if it does not answer.
        LaunchError: if it is unfit.
    """
    try:
        check_fitness(connect(redis_url, STORE_TIMEOUT))
    except StoreUnavailable as error:
        raise StoreAbsent(f"{error}: start it, or correct REDIS_URL") from error
    except StoreError as error:
        raise LaunchError(str(error)) from error


def check_results(url: str, redis_url: str | None) -> None:
    """Check that results can be written to a place and read there, and that it is the one that other programs use.

    redis_url: None = the Redis that knows that does not run yet.

    Raises:
        LaunchError: if they cannot, or it is another one.
    """
    try:
        place = ResultStore(url, STORE_TIMEOUT)
        if redis_url is None:
            place.check()
        else:
            Store(connect(redis_url, STORE_TIMEOUT), result_store=place).results.join()
    except StoreError as error:
        raise LaunchError(f"{error}: correct DENOISED_RESULTS_URL={url}, or what it names") from error


def find_model(name: str, precision: str) -> str:
    """The folder of a model: `name` itself if it is a path, else that of a model on a hub.

    A model that is not in the cache is downloaded, with progress on stderr, in a child process: the front end imports
    nothing that reads checkpoints.

    Raises:
        ChildStartError: if it cannot be downloaded.
    """
    if Path(name).exists() or not HUB_NAME.fullmatch(name):
        return name
    command = [sys.executable, "-P", "-m", "denoised.model.hub", "--if-missing", "--precision", precision, name]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, encoding="utf-8", preexec_fn=die_with_parent
    ) as child:
        assert child.stdout is not None
        folder = child.stdout.read().strip()
    if child.returncode:
        raise ChildStartError(f"{name} is not a folder here, and cannot be downloaded")
    return folder


def check_models(folders: Sequence[str]) -> None:
    """Check that folders contain the files of a model, in a child process without torch: the front end imports nothing
    that reads checkpoints, and the worker would report the problem only after the store and the API have started.

    Raises:
        LaunchError: if a folder cannot be served.
    """
    if not folders:
        return
    command = [sys.executable, "-P", "-m", "denoised.model.checkpoints", *folders]
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        stdin=subprocess.DEVNULL,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    if done.returncode:
        raise LaunchError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
