"""Images in a terminal: each character cell is an upper half-block, which shows two pixels.

The foreground color is the upper pixel, the background color the lower one.
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
GAP = 1  # columns between images, and lines between rows of images
CELL = (1, 2)  # (width, height) in pixels of a character cell
MIN_SIDE = 24  # pixels; smaller images are enlarged by an integer factor if there is room


@dataclass(frozen=True)
class Halfblocks:
    """Images of one size, side by side.

    rows: rows of images; a row that is wider than the console is wrapped.
    lines: most terminal lines for all images together; None = no limit.
    """

    rows: Sequence[Sequence[Image.Image]]
    lines: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        pictures = [picture for row in self.rows for picture in row]
        if not pictures:
            return
        longest = max(len(row) for row in self.rows)
        size = fit_size(pictures[0].size, (len(self.rows), longest), (options.max_width, self.lines))
        per_line = max(1, (options.max_width + GAP) // (size[0] + GAP))
        wrapped = [row[k : k + per_line] for row in self.rows for k in range(0, len(row), per_line)]
        for number, line in enumerate(wrapped):
            if number:
                yield Segment.line()
            yield from _image_line([_resized(picture, size) for picture in line])


def fit_size(size: tuple[int, int], grid: tuple[int, int], room: tuple[int, int | None]) -> tuple[int, int]:
    """The (width, height) in pixels at which a grid of images is shown.

    size: (width, height) of each image.
    grid: (rows, columns) of images.
    room: (columns, lines) of characters; lines None = no limit.
    Small images are enlarged and large ones reduced to fit; others keep their size.
    """
    columns, lines = room
    factor = float(max(1, math.ceil(MIN_SIDE / max(size))))
    while factor > 1 and not _fits(_scaled(size, factor), grid, room):
        factor -= 1
    factor = min(factor, columns / size[0])
    if lines is not None:
        while _scaled(size, factor) != CELL and not _fits(_scaled(size, factor), grid, room):
            factor *= 0.9
    return _scaled(size, factor)


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(CELL[0], int(size[0] * factor)), max(CELL[1], int(size[1] * factor))


def _fits(size: tuple[int, int], grid: tuple[int, int], room: tuple[int, int | None]) -> bool:
    columns, lines = room
    if size[0] > columns:
        return False
    per_line = max(1, (columns + GAP) // (size[0] + GAP))
    wrapped = grid[0] * math.ceil(grid[1] / per_line)
    return lines is None or wrapped * (math.ceil(size[1] / 2) + GAP) - GAP <= lines


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    rgb = picture.convert("RGB")
    if rgb.size == size:
        return rgb
    larger = size[0] > rgb.width
    return rgb.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def _image_line(pictures: Sequence[Image.Image]) -> Iterator[Segment]:
    """Images of one size next to each other."""
    height = pictures[0].height
    for y in range(0, height, 2):
        for number, picture in enumerate(pictures):
            if number:
                yield Segment(" " * GAP)
            yield from _pixel_line(picture, y)
        yield Segment.line()


def _pixel_line(picture: Image.Image, y: int) -> Iterator[Segment]:
    """Two lines of pixels, with equal neighbors in one segment. The last line of an odd height has no lower pixels."""
    pixels = picture.load()
    assert pixels is not None
    has_lower = y + 1 < picture.height
    cells = [(pixels[x, y], pixels[x, y + 1] if has_lower else None) for x in range(picture.width)]
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
