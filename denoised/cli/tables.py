"""Tables that fit the terminal: optional columns are dropped before any other is folded."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

GAP = 2  # terminal columns between two table columns
RIGHT_ALIGNED = ">"  # prefix of the heading of a column of numbers

Rows = Sequence[Sequence[RenderableType]]


def fit_table(console: Console, headings: Sequence[str], rows: Rows, optional: Sequence[str] = ()) -> Table:
    """A table at most as wide as the console.

    optional: headings of the columns that may be dropped, in the order in which they are dropped.
    """
    widths = [_width(console, heading, [row[k] for row in rows]) for k, heading in enumerate(headings)]
    kept = list(range(len(headings)))
    for heading in optional:
        if sum(widths[k] + GAP for k in kept) - GAP <= console.width:
            break
        kept.remove(headings.index(heading))
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0), show_header=any(headings))
    for k in kept:
        table.add_column(
            _label(headings[k]), justify="right" if headings[k].startswith(RIGHT_ALIGNED) else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(row[k] for k in kept))
    return table


def _width(console: Console, heading: str, cells: Sequence[RenderableType]) -> int:
    return max(console.measure(cell).maximum for cell in (Text(_label(heading)), *cells))


def _label(heading: str) -> str:
    return heading.removeprefix(RIGHT_ALIGNED)
