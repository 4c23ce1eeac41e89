"""Progress of a long measurement: a bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY = 30.0  # seconds


@contextmanager
def progress(console: Console, description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show progress toward `total`; yields a function to call with the number of newly completed items."""
    if not console.is_terminal:
        yield _print_lines(console, description, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def _print_lines(console: Console, description: str, total: int, unit: str) -> Callable[[int], None]:
    done, last_line = 0, monotonic()

    def advance(count: int) -> None:
        nonlocal done, last_line
        done += count
        if monotonic() - last_line > LINE_EVERY:
            last_line = monotonic()
            console.print(f"{description}: {done:,} of {total:,} {unit}", highlight=False, soft_wrap=True)

    return advance
