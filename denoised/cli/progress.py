"""The progress of a job: a redrawn bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol, Self

from PIL import Image
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from denoised.cli.console import duration
from denoised.cli.halfblocks import Halfblocks
from denoised.client import Client, Event, Frame, Job, JobProgress, JobQueued, JobStarted, ServiceError
from denoised.command_line.console import print_status

BAR_WIDTH = 30  # columns
NARROW = 56  # columns; a narrower terminal gets a short line without a bar
PROGRESS_LINES = 4  # progress lines per job without a terminal
REFRESHES_PER_SECOND = 10
POLL_SECONDS = 1.0
RESERVED_LINES = 3  # terminal lines left free below the images, for the bar and the prompt


class Display(Protocol):
    """A context manager that shows the events of a job."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def show(self, event: Event) -> None: ...


class ProgressLines:
    """Prints a line on stderr when the job is queued, when it starts, and after each quarter of its steps."""

    def __init__(self) -> None:
        self._lines = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, event: Event) -> None:
        if isinstance(event, JobQueued):
            print_status(", ".join(["queued", *_estimate(event.queue_position, event.eta_seconds)]))
        elif isinstance(event, JobStarted):
            self._lines = 0
            print_status("started" if event.attempt == 1 else f"restarted (attempt {event.attempt})")
        elif isinstance(event, JobProgress) and event.step * PROGRESS_LINES // event.steps > self._lines:
            self._lines = event.step * PROGRESS_LINES // event.steps
            print_status(f"step {event.step} of {event.steps}")


class NoDisplay:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, event: Event) -> None:
        pass


class LiveDisplay:
    """A line with bar, step, queue position and remaining time; above it, the newest frame of each image.

    client: polled once a second, because the queue position changes without an event.
    """

    def __init__(self, console: Console, client: Client, job: Job) -> None:
        self._console, self._client = console, client
        self._job, self._step = job, job.step
        self._frames: dict[str, dict[int, Image.Image]] = {}
        self._polled_at = time.monotonic()
        self._live = Live(
            console=console,
            transient=True,
            refresh_per_second=REFRESHES_PER_SECOND,
            get_renderable=self._render,
            vertical_overflow="crop",
        )
        self._closed = threading.Event()
        self._poller = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Self:
        self._live.start()
        self._poller.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self._live.stop()
        self._poller.join(POLL_SECONDS)

    def show(self, event: Event) -> None:
        if isinstance(event, JobStarted):
            self._frames.clear()
        elif isinstance(event, JobProgress):
            self._step = event.step
        elif isinstance(event, Frame):
            self._frames.setdefault(event.kind, {})[event.image] = event.picture

    def _poll(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            try:
                self._job, self._polled_at = self._client.job(self._job.id), time.monotonic()
            except ServiceError:
                continue  # the event stream reports the error

    def _render(self) -> RenderableType:
        line = progress_line(self._job, max(self._step, self._job.step), self._eta(), self._console.width)
        return Group(*self._pictures(), line)

    def _eta(self) -> float | None:
        eta = self._job.eta_seconds
        return None if eta is None else max(0.0, eta - (time.monotonic() - self._polled_at))

    def _pictures(self) -> list[RenderableType]:
        """The frames: x_t above x̂_0 above ε̂, as far as the job has them."""
        rows: Sequence[Sequence[Image.Image]] = [
            [picture for _, picture in sorted(self._frames[kind].items())]
            for kind in ("xt", "x0", "eps")
            if kind in self._frames
        ]
        return [Halfblocks(rows, max(2, self._console.height - RESERVED_LINES)), Text()] if rows else []


def progress_line(job: Job, step: int, eta: float | None, width: int) -> RenderableType:
    """A line of at most `width` columns about a job."""
    running = job.status != "queued" or step > 0
    details = _estimate(None if running else job.queue_position, eta)
    if width < NARROW:
        text = f"{step}/{job.run_steps}" if running else "queued"
        return Text(", ".join([text, *details]), no_wrap=True, overflow="ellipsis")
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=job.run_steps, completed=step, width=BAR_WIDTH, pulse=not running)
    steps = f"{step}/{job.run_steps}"
    grid.add_row("running" if running else "queued ", bar, steps, Text(", ".join(details), style="cyan", no_wrap=True))
    return grid


def _estimate(position: int | None, eta: float | None) -> list[str]:
    ahead = [] if position is None else ["next in line" if position == 0 else f"{position} ahead"]
    return ahead + ([] if eta is None else [f"about {duration(eta)}"])
