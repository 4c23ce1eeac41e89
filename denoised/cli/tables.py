"""Tables that fit the terminal: long texts are cut, then optional columns dropped, before another column is folded."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from denoised.command_line.console import can_redraw, printable

GAP = 2  # terminal columns between two table columns
SHORTEST = 8  # terminal columns that a column of long texts keeps
COLORS = {"queued": "yellow", "running": "cyan", "succeeded": "green", "failed": "red", "canceled": "magenta"}
RIGHT_ALIGNED = ">"  # prefix of the heading of a column of numbers

Rows = Sequence[Sequence[RenderableType]]


def print_rows(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    optional: Sequence[str] = (),
    shortened: Sequence[str] = (),
) -> None:
    """Print rows as a table on a terminal, else as tab-separated lines; the parameters are those of `fit_table`."""
    if not can_redraw(console):
        for row in rows:
            typer.echo("\t".join(printable(cell) for cell in row), err=console.stderr)
    elif rows:
        cells = [[Text(printable(cell), style=COLORS.get(cell.split(" ")[0], "")) for cell in row] for row in rows]
        console.print(fit_table(console, headings, cells, optional, shortened))


def fit_table(
    console: Console,
    headings: Sequence[str],
    rows: Rows,
    optional: Sequence[str] = (),
    shortened: Sequence[str] = (),
) -> Table:
    """A table at most as wide as the console.

    optional: headings of the columns that may be dropped, in the order in which they are dropped.
    shortened: headings of the columns whose texts may be cut, in the order in which they are; before any is dropped.
    """
    widths = [_width(console, heading, [row[k] for row in rows]) for k, heading in enumerate(headings)]
    for heading in shortened:
        k = headings.index(heading)
        widths[k] = max(min(widths[k], SHORTEST), widths[k] - max(0, _total(widths) - console.width))
    kept = list(range(len(headings)))
    for heading in optional:
        if _total([widths[k] for k in kept]) <= console.width:
            break
        kept.remove(headings.index(heading))
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0), show_header=any(headings))
    for k in kept:
        is_cut = headings[k] in shortened
        table.add_column(
            _label(headings[k]),
            justify="right" if headings[k].startswith(RIGHT_ALIGNED) else "left",
            overflow="ellipsis" if is_cut else "fold",
            no_wrap=is_cut,
            max_width=widths[k] if is_cut else None,
        )
    for row in rows:
        table.add_row(*(row[k] for k in kept))
    return table


def _total(widths: Sequence[int]) -> int:
    """The width of a table with columns of these widths."""
    return sum(width + GAP for width in widths) - GAP


def _width(console: Console, heading: str, cells: Sequence[RenderableType]) -> int:
    return max(console.measure(cell).maximum for cell in (Text(_label(heading)), *cells))


def _label(heading: str) -> str:
    return heading.removeprefix(RIGHT_ALIGNED)
