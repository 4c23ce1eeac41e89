"""Tables that fit: columns that can be missed go before any that cannot is cut."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

GAP = 2  # columns of the terminal between two of the table
RIGHT = ">"  # begins the head of a column of numbers

Rows = Sequence[Sequence[RenderableType]]


def fitted(console: Console, heads: Sequence[str], rows: Rows, expendable: Sequence[str] = ()) -> Table:
    """A table as wide as the console at most. expendable: heads of columns that can be missed, those first that are
    missed least."""
    widths = [_width(console, head, [row[k] for row in rows]) for k, head in enumerate(heads)]
    kept = list(range(len(heads)))
    for head in expendable:
        if sum(widths[k] + GAP for k in kept) - GAP <= console.width:
            break
        kept.remove(heads.index(head))
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0), show_header=any(heads))
    for k in kept:
        table.add_column(_named(heads[k]), justify="right" if heads[k].startswith(RIGHT) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row[k] for k in kept))
    return table


def _width(console: Console, head: str, cells: Sequence[RenderableType]) -> int:
    return max(console.measure(cell).maximum for cell in (Text(_named(head)), *cells))


def _named(head: str) -> str:
    return head.removeprefix(RIGHT)
