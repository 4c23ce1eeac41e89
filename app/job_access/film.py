"""A job's stored frames as one animation or contact sheet. Slow, and bounded in memory.

A frame or picture that is damaged, or larger than any, is left out: its place stays empty.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from denoised.jobs.results.results import Results
from denoised.jobs.store.event_log import EventLog

Kind = Literal["x0", "xt", "eps"]
Pictures = dict[int, bytes]  # PNGs by image index

# Loaded at the start: a format whose library finds no memory when it is first used is lost to Pillow for good.
PLUGINS = (GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin)
FRAME_MS, LAST_FRAME_MS = 80, 1500
MIN_SIDE = 224  # pixels; smaller pictures are enlarged by an integer factor
GUTTER_DIVISOR = 14  # a contact sheet's gutter is the picture's height divided by this
PAGE_BYTES = 2**20  # of events that are read at once
MAX_PICTURE_PIXELS = 2**25  # of one stored picture
MAX_PIXELS = 2**26  # of all frames of an animation together, as shown; of a larger one, every k-th frame is shown


def read_stages(log: EventLog, results: Results, job_id: str, kind: Kind | None) -> list[Pictures]:
    """The frames of one kind in the order of their steps; those of a later attempt replace those of an earlier one.

    kind: None = `xt` if the job kept any, else `x0`.
    """
    chosen, found = kind or "x0", dict[int, Pictures]()
    for event in _frames(log, job_id):
        if kind is None and event.get("kind") == "xt" and chosen == "x0":
            chosen = "xt"
            found.clear()
        if event.get("kind") != chosen:
            continue
        complete = results.with_frame(event)
        if complete is not None and (frame := _decoded(complete)) is not None:
            step, image, data = frame
            found.setdefault(step, {})[image] = data
    return [found[step] for step in sorted(found)]


def render(stages: Sequence[Pictures], count: int, pillow_format: str, *, gutters: bool) -> bytes | None:
    """The file of an animation; None when no picture can be read.

    stages: what it shows, one after the other.
    count: the number of images of the job.
    gutters: whether the images of a stage are separated.
    """
    divisor = GUTTER_DIVISOR if gutters else 0
    side = next(filter(None, map(_size, reversed(stages))), None)
    if side is None:
        return None
    last = _grid(stages[-1], count, divisor, side)
    every = math.ceil(len(stages) * last.width * last.height / MAX_PIXELS)
    first, *rest = [*(_grid(pictures, count, divisor, side) for pictures in stages[-1 - every :: -every][::-1]), last]
    durations = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
    options: dict[str, Any] = {"lossless": True} if pillow_format == "WEBP" else {}
    out = io.BytesIO()
    first.save(out, pillow_format, save_all=True, append_images=rest, duration=durations, loop=0, **options)
    return out.getvalue()


def _frames(log: EventLog, job_id: str) -> Iterator[dict[str, Any]]:
    seq: int | None = 0
    while seq is not None:
        page = log.page(job_id, seq, PAGE_BYTES)
        yield from (event for event in page.events if event["type"] == "frame")
        seq = page.last


def _decoded(event: Mapping[str, Any]) -> tuple[int, int, bytes] | None:
    """Step, image and file of a frame; None when one of them is damaged."""
    step, image, data = event.get("step"), event.get("image"), event.get("data")
    if not isinstance(step, int) or not isinstance(image, int) or not isinstance(data, str):
        return None
    try:
        return step, image, base64.b64decode(data)
    except ValueError:
        return None


def _open(data: bytes) -> Image.Image | None:
    """A decoded picture; None when it cannot be decoded, or is larger than any."""
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG", "WEBP", "JPEG"])
        if image.width * image.height > MAX_PICTURE_PIXELS:
            return None
        image.load()
    except Exception:  # Pillow's decoders raise a dozen kinds of exceptions for damaged files
        return None
    return image


def _size(pictures: Pictures) -> tuple[int, int] | None:
    """The (width, height) of the first picture of a step that can be read."""
    opened = next(filter(None, map(_open, pictures.values())), None)
    return opened.size if opened is not None else None


def _grid(pictures: Pictures, count: int, gutter_divisor: int, size: tuple[int, int]) -> Image.Image:
    """The images of one step in a grid for `count` images, enlarged by an integer factor.

    gutter_divisor: the gutter is the picture's height divided by it; 0 = no gutter.
    size: (width, height) of each picture; previews of latents are smaller, and are enlarged.
    """
    shrink = max(1.0, math.sqrt(count * size[0] * size[1] / MAX_PIXELS))
    width, height = (max(1, int(side / shrink)) for side in size)
    found = {index: _open(data) for index, data in pictures.items() if 0 <= index < count}
    opened = {index: image for index, image in found.items() if image is not None}
    gutter = max(1, height // gutter_divisor) if gutter_divisor else 0
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    mode = "RGB" if any(image.mode == "RGB" for image in opened.values()) else "L"
    whole = (gutter + columns * (width + gutter), gutter + rows * (height + gutter))
    grid = Image.new(mode, whole, "white" if gutter else "black")
    for index, image in opened.items():
        row, column = divmod(index, columns)
        fits = image.size == (width, height)
        shown = image if fits else image.resize((width, height), Image.Resampling.NEAREST)
        grid.paste(shown, (gutter + column * (width + gutter), gutter + row * (height + gutter)))
    factor = max(1, math.ceil(MIN_SIDE / min(grid.size)))
    return grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)
