"""Progress of a download: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

LINE_EVERY = 10.0  # seconds
Advance = Callable[[int], None]


def format_bytes(count: int) -> str:
    """1234567 → "1.2 MB", with powers of 1000 as hubs and disks use."""
    value, units = float(count), ["kB", "MB", "GB", "TB"]
    if value < 1000:
        return f"{count} bytes"
    while True:
        value, unit = value / 1000, units.pop(0)
        if value < 999.95 or not units:
            return f"{value:.1f} {unit}"


@contextmanager
def terminal_progress(console: Console, description: str, total: int) -> Iterator[Advance]:
    """A bar; without a terminal, lines. Yields a function that takes the number of further bytes."""
    if not console.is_terminal:
        yield line_progress(
            lambda line: console.print(line, highlight=False, soft_wrap=True, markup=False), description, total
        )
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def line_progress(say: Callable[[str], None], description: str, total: int) -> Advance:
    """Every ten seconds and at the end, a line with what is there, the share and the speed."""
    done, started, last = 0, monotonic(), monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = monotonic()
        if now - last < LINE_EVERY and done < total:
            return
        last = now
        speed = format_bytes(int(done / max(now - started, 0.001)))
        share = 100 * done // total if total else 100
        say(f"{description}: {format_bytes(done)} of {format_bytes(total)} ({share} %), {speed}/s")

    return advance
