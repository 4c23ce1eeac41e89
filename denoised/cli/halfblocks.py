"""Pictures in a terminal: each character cell is an upper half-block, two pixels, one above the other.

The upper is the cell's foreground colour, the lower its background.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

UPPER = "▀"
GAP = 1  # columns between pictures, and lines between rows of them
SMALLEST = (1, 2)  # pixels, of one cell
SMALLEST_SIDE = 24  # pixels; smaller pictures are enlarged by a whole factor where there is room


@dataclass(frozen=True)
class Halfblocks:
    """Pictures of one size side by side, in as many rows as they need.

    rows: of pictures; they stay rows where they fit. lines: the most that all may take together, None = no limit.
    """

    rows: Sequence[Sequence[Image.Image]]
    lines: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        pictures = [picture for row in self.rows for picture in row]
        if not pictures:
            return
        longest = max(len(row) for row in self.rows)
        size = fitting(pictures[0].size, (len(self.rows), longest), (options.max_width, self.lines))
        across = max(1, (options.max_width + GAP) // (size[0] + GAP))
        shelves = [row[k : k + across] for row in self.rows for k in range(0, len(row), across)]
        for number, shelf in enumerate(shelves):
            if number:
                yield Segment.line()
            yield from _shelf([_resized(picture, size) for picture in shelf])


def fitting(size: tuple[int, int], grid: tuple[int, int], room: tuple[int, int | None]) -> tuple[int, int]:
    """The (width, height) in pixels at which a grid of (rows, columns) of pictures is shown in a room of (columns,
    lines) of characters: enlarged to be seen, made smaller to fit, else as they are."""
    columns, lines = room
    factor = float(max(1, math.ceil(SMALLEST_SIDE / max(size))))
    while factor > 1 and not _fits(_scaled(size, factor), grid, room):
        factor -= 1
    factor = min(factor, columns / size[0])
    if lines is not None:
        while _scaled(size, factor) != SMALLEST and not _fits(_scaled(size, factor), grid, room):
            factor *= 0.9
    return _scaled(size, factor)


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(SMALLEST[0], int(size[0] * factor)), max(SMALLEST[1], int(size[1] * factor))


def _fits(size: tuple[int, int], grid: tuple[int, int], room: tuple[int, int | None]) -> bool:
    columns, lines = room
    if size[0] > columns:
        return False
    across = max(1, (columns + GAP) // (size[0] + GAP))
    shelves = grid[0] * math.ceil(grid[1] / across)
    return lines is None or shelves * (math.ceil(size[1] / 2) + GAP) - GAP <= lines


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    coloured = picture.convert("RGB")
    if coloured.size == size:
        return coloured
    larger = size[0] > coloured.width
    return coloured.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def _shelf(pictures: Sequence[Image.Image]) -> Iterator[Segment]:
    """Pictures of one size beside each other."""
    height = pictures[0].height
    for y in range(0, height, 2):
        for number, picture in enumerate(pictures):
            if number:
                yield Segment(" " * GAP)
            yield from _line(picture, y)
        yield Segment.line()


def _line(picture: Image.Image, y: int) -> Iterator[Segment]:
    """Two lines of pixels, equal neighbours as one segment; the last line of an odd height has nothing below."""
    pixels = picture.load()
    assert pixels is not None
    below = y + 1 < picture.height
    cells = [(pixels[x, y], pixels[x, y + 1] if below else None) for x in range(picture.width)]
    start = 0
    for x in range(1, len(cells) + 1):
        if x == len(cells) or cells[x] != cells[start]:
            upper, lower = cells[start]
            style = Style(color=_color(upper), bgcolor=None if lower is None else _color(lower))
            yield Segment(UPPER * (x - start), style)
            start = x


def _color(pixel: object) -> Color:
    assert isinstance(pixel, tuple)
    return Color.from_rgb(*pixel)
