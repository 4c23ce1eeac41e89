"""How far a long measurement is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY = 30.0  # seconds


@contextmanager
def progress(console: Console, description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many more are done."""
    if not console.is_terminal:
        yield _lines(console, description, total, unit)
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


def _lines(console: Console, description: str, total: int, unit: str) -> Callable[[int], None]:
    done, said = 0, monotonic()

    def advanced(count: int) -> None:
        nonlocal done, said
        done += count
        if monotonic() - said > LINE_EVERY:
            said = monotonic()
            console.print(f"{description}: {done:,} of {total:,} {unit}", highlight=False, soft_wrap=True)

    return advanced
