"""The section about startup: how long `make serve` takes until the server is ready."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from bench.benchmark_run import BenchmarkRun
from bench.errors import BenchError
from bench.load.processes import ROOT, MeasuredProgram, answers, free_port
from bench.results.sample_names import DENOISED, FIRST_START, LATER_START, READY
from bench.results.samples import SampleRecorder


def measure_startup(run: BenchmarkRun, recorder: SampleRecorder) -> None:
    """Run `make serve` in a fresh copy of the installed project with a new data directory, and then once more."""
    for number in range(run.length.rounds):
        copy = run.folder / f"copy-{number}"
        _copy_project(copy)
        for condition in (FIRST_START, LATER_START):
            seconds = _seconds_to_ready(copy, run.folder / f"ready-{number}.log")
            recorder.add(condition, DENOISED, READY, seconds)
            run.log(f"ready after {seconds:.1f} s ({condition})")
        shutil.rmtree(copy)


def _copy_project(copy: Path) -> None:
    """Copy the files that git tracks or would add, as they are now, and link the environment of `make install`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        raise BenchError(f"git does not list the project's files: {listed.stderr.strip()}")
    for name in listed.stdout.splitlines():
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_file():
            shutil.copy2(source, target)
    (copy / ".venv").symlink_to(ROOT / ".venv")


def _seconds_to_ready(copy: Path, log: Path) -> float:
    """The time from the start of `make serve` until /readyz answers."""
    port = free_port()
    environment = {"PYTHONPATH": str(copy)}  # the copy's modules, not those of the environment it borrows
    began = time.perf_counter()
    program = MeasuredProgram.start(
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
