"""The status line of `denoised serve`: the last line of the terminal, drawn again every second."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from typing import TextIO

from denoised.app.admission.catalog import Catalog
from denoised.app.admission.queue.job_queue import JobQueue
from denoised.command_line.console import printable
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.log import ERASE_LINE
from denoised.jobs.worker_report import WorkerReport

SECONDS = 1.0  # between two drawings
HINT = "stop: Ctrl-C"


class StatusLine:
    """Draws what the server does on a terminal while the context is open.

    A log line of any child process erases it and takes its place; the next drawing is below.
    """

    def __init__(self, terminal: TextIO, catalog: Catalog, queue: JobQueue) -> None:
        self._terminal = terminal
        self._catalog = catalog
        self._queue = queue
        self._before: dict[str, WorkerReport] = {}
        self._rates: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._draw_until_stopped, name="status line", daemon=True)

    def __enter__(self) -> StatusLine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._write("")

    def _draw_until_stopped(self) -> None:
        while not self._stop.is_set():
            self._write(self._text())
            self._stop.wait(SECONDS)

    def _write(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1  # the last column would wrap
        self._terminal.write(f"{ERASE_LINE}{printable(text)[:width]}")
        self._terminal.flush()

    def _text(self) -> str:
        try:
            workers = self._catalog.workers()
            snapshot = self._queue.snapshot(self._catalog.known())
        except StoreUnavailable as error:
            return f"{error} · {HINT}"
        waiting = sum(len(jobs) for jobs in snapshot.waiting.values())
        self._rates = update_rates(self._rates, self._before, workers)
        self._before = {worker.name: worker for worker in workers}
        return describe_service(workers, waiting, sum(self._rates.values()))


def update_rates(
    rates: Mapping[str, float], before: Mapping[str, WorkerReport], workers: Sequence[WorkerReport]
) -> dict[str, float]:
    """The evaluations per second of each worker between its last two reports.

    rates: those of before, kept where a worker has made no new report.
    before: the earlier reports, by name.
    """
    return {worker.name: _rate(rates.get(worker.name, 0.0), before.get(worker.name), worker) for worker in workers}


def _rate(rate: float, before: WorkerReport | None, worker: WorkerReport) -> float:
    if before is None or worker.reported_at <= before.reported_at:
        return rate
    made = worker.counters.get("evaluations", 0) - before.counters.get("evaluations", 0)
    return max(0.0, made / (worker.reported_at - before.reported_at))


def describe_service(workers: Sequence[WorkerReport], waiting: int, evaluations_per_second: float) -> str:
    """One line: "2 workers · 16 images in progress · 3 jobs waiting · 612 evaluations/s · stop: Ctrl-C"."""
    images = sum(worker.trajectories for worker in workers)
    parts = [count(len(workers), "worker") if workers else "no worker is running"]
    if images or waiting:
        parts += [f"{count(images, 'image')} in progress", f"{count(waiting, 'job')} waiting"]
        parts += [f"{evaluations_per_second:,.0f} evaluations/s"]
    elif workers:
        parts.append("idle")
    return " · ".join([*parts, HINT])


def count(number: int, noun: str) -> str:
    """A number and its noun: 1 image, 2 images."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
