"""Sections about a server's life: how soon it is ready, and whether its worker's memory grows."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from itertools import islice
from pathlib import Path

from bench.errors import BenchError
from bench.figures import Samples
from bench.load import SHORT_JOBS, counted_loop
from bench.names import FIRST, GROWTH, LATER, MEGABYTES, OURS, READY, SETTLED
from bench.place import Place
from bench.programs import ROOT, Program, answers, free_port, resident_bytes
from bench.servers import denoised, worker_of

CLIENTS = 16
SETTLED_JOBS = 500  # jobs after which memory is to be flat
LOOK_EVERY = 100


def measure_ready(place: Place, found: Samples) -> None:
    """`make serve` in a fresh copy of the project, installed, with a fresh data directory; and once more."""
    for number in range(place.effort.rounds):
        copy = place.folder / f"copy-{number}"
        _copy_project(copy)
        for condition in (FIRST, LATER):
            seconds = _seconds_to_ready(copy, place.folder / f"ready-{number}.log")
            found.add(condition, OURS, READY, seconds)
            place.say(f"ready after {seconds:.1f} s ({condition})")
        shutil.rmtree(copy)


def measure_memory(place: Place, found: Samples) -> None:
    """Short jobs through one worker; its resident memory after every hundred of them."""
    asks = SHORT_JOBS.asks(0)
    with denoised(place.folder, "memory") as server:
        worker = worker_of(server)
        for done in range(LOOK_EVERY, place.effort.jobs + 1, LOOK_EVERY):
            asyncio.run(counted_loop(server.url, CLIENTS, list(islice(asks, LOOK_EVERY))))
            if done >= SETTLED_JOBS:
                found.add(SETTLED, OURS, MEGABYTES, resident_bytes(worker) / 1e6)
            if done % 1000 == 0:
                place.say(f"{done} jobs, {resident_bytes(worker) / 1e6:.0f} MB")
        if worker_of(server) != worker:
            raise BenchError("the worker was replaced while its memory was watched")
    settled, *after = found.found[SETTLED, OURS, MEGABYTES]
    found.add(f"{place.effort.jobs:,} jobs", OURS, GROWTH, 100 * (max(after) / settled - 1))


def _copy_project(copy: Path) -> None:
    """What git has of it or would take, as it is now, with the environment that `make install` made."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        raise BenchError(f"git does not tell the project's files: {listed.stderr.strip()}")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(ROOT / ".venv")


def _seconds_to_ready(copy: Path, log: Path) -> float:
    """From the start of `make serve` until it answers that it is ready."""
    port = free_port()
    environment = {"PYTHONPATH": str(copy)}  # its own modules, not those of the installation it borrows
    began = time.perf_counter()
    program = Program.start(
        "make serve",
        ["make", "serve", f"ARGS=--port {port} --data-dir {copy / 'data'}"],
        log,
        cwd=copy,
        environment=environment,
    )
    try:
        program.wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"))
        return time.perf_counter() - began
    finally:
        program.stop()
