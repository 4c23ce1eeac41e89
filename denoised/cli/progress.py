"""How far a job is: a bar that is drawn anew on a terminal, plain lines elsewhere."""

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

from denoised.cli.console import duration, remark
from denoised.cli.halfblocks import Halfblocks
from denoised.client import Client, Event, Frame, Job, Progress, Queued, ServiceError, Started

BAR, NARROW = 30, 56  # columns: of the bar, and of a terminal on which less is said
PARTS = 4  # of a job, after each of which there is a plain line
REFRESHES = 10  # a second
ASK_SECONDS = 1.0
BELOW = 3  # lines of the terminal that pictures leave to the bar and the prompt


class Display(Protocol):
    """Shows a job's events while it is entered."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def show(self, event: Event) -> None: ...


class PlainLines:
    """One line on stderr for what is worth one."""

    def __init__(self) -> None:
        self._parts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, event: Event) -> None:
        if isinstance(event, Queued):
            remark(", ".join(["queued", *_outlook(event.queue_position, event.eta_seconds)]))
        elif isinstance(event, Started):
            self._parts = 0
            remark("started" if event.attempt == 1 else f"started again (attempt {event.attempt})")
        elif isinstance(event, Progress) and event.step * PARTS // event.steps > self._parts:
            self._parts = event.step * PARTS // event.steps
            remark(f"step {event.step} of {event.steps}")


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, event: Event) -> None:
        pass


class LiveDisplay:
    """A line with bar, step, place in the queue and time to go; above it, when frames come, what they show.

    client: is asked once a second how the job stands, since the queue moves without events.
    """

    def __init__(self, console: Console, client: Client, job: Job) -> None:
        self._console, self._client = console, client
        self._job, self._step = job, job.step
        self._frames: dict[str, dict[int, Image.Image]] = {}
        self._heard = time.monotonic()
        self._live = Live(
            console=console,
            transient=True,
            refresh_per_second=REFRESHES,
            get_renderable=self._drawn,
            vertical_overflow="crop",
        )
        self._leave = threading.Event()
        self._asking = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Self:
        self._live.start()
        self._asking.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._leave.set()
        self._live.stop()
        self._asking.join(ASK_SECONDS)

    def show(self, event: Event) -> None:
        if isinstance(event, Started):
            self._frames.clear()
        elif isinstance(event, Progress):
            self._step = event.step
        elif isinstance(event, Frame):
            self._frames.setdefault(event.kind, {})[event.image] = event.picture

    def _ask(self) -> None:
        while not self._leave.wait(ASK_SECONDS):
            try:
                self._job, self._heard = self._client.job(self._job.id), time.monotonic()
            except ServiceError:
                continue  # the stream of events tells

    def _drawn(self) -> RenderableType:
        line = bar(self._job, max(self._step, self._job.step), self._eta(), self._console.width)
        return Group(*self._pictures(), line)

    def _eta(self) -> float | None:
        eta = self._job.eta_seconds
        return None if eta is None else max(0.0, eta - (time.monotonic() - self._heard))

    def _pictures(self) -> list[RenderableType]:
        """x_t above x̂_0, where there are both."""
        rows: Sequence[Sequence[Image.Image]] = [
            [picture for _, picture in sorted(self._frames[kind].items())]
            for kind in ("xt", "x0")
            if kind in self._frames
        ]
        return [Halfblocks(rows, max(2, self._console.height - BELOW)), Text()] if rows else []


def bar(job: Job, step: int, eta: float | None, width: int) -> RenderableType:
    """A job in one line of at most `width` columns."""
    running = job.status != "queued" or step > 0
    said = _outlook(None if running else job.queue_position, eta)
    if width < NARROW:
        text = f"{step}/{job.steps}" if running else "queued"
        return Text(", ".join([text, *said]), no_wrap=True, overflow="ellipsis")
    grid = Table.grid(padding=(0, 1))
    share = ProgressBar(total=job.steps, completed=step, width=BAR, pulse=not running)
    steps = f"{step}/{job.steps}"
    grid.add_row("running" if running else "queued ", share, steps, Text(", ".join(said), style="cyan", no_wrap=True))
    return grid


def _outlook(position: int | None, eta: float | None) -> list[str]:
    ahead = [] if position is None else ["next in line" if position == 0 else f"{position} ahead"]
    return ahead + ([] if eta is None else [f"about {duration(eta)}"])
