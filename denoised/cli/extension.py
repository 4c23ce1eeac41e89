"""`denoised generate --extend`: the picture on a larger canvas, to be continued beyond its edges (outpainting)."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import cast

import typer
from PIL import Image, ImageOps, UnidentifiedImageError

from denoised.client.model import Model
from denoised.jobs.request import RequestFields

EDGES = ("left", "right", "top", "bottom")
MAX_PERCENT = 200  # of the side that an edge lengthens
ALLOWED = f"PERCENT for all edges, or EDGE=PERCENT,…; edges: {', '.join(EDGES)}; 0 … {MAX_PERCENT}"
OPTION = "--extend"

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Extension:
    """How far a picture is continued, as shares of its width (left, right) and its height (top, bottom)."""

    left: float = 0.0
    right: float = 0.0
    top: float = 0.0
    bottom: float = 0.0


@dataclass(frozen=True)
class Layout:
    """A canvas and the place of a picture on it, in pixels.

    Attributes:
        size: Width and height of the canvas.
        place: Of the picture.
    """

    size: tuple[int, int]
    place: Box


def parse_extension(text: str) -> Extension:
    """Read `25`, or `right=50,bottom=10`.

    Raises:
        typer.BadParameter: for another text.
    """
    parts = [part.partition("=") for part in text.split(",")]
    if len(parts) == 1 and not parts[0][1]:
        parts = [(edge, "=", text) for edge in EDGES]
    shares = {edge: _share(percent) for edge, _, percent in parts}
    if len(shares) < len(parts) or not set(shares) <= set(EDGES) or None in shares.values() or not any(shares.values()):
        raise typer.BadParameter(f"{text!r:.80} was given (allowed: {ALLOWED})", param_hint=OPTION)
    return Extension(**cast(dict[str, float], shares))


def _share(percent: str) -> float | None:
    try:
        share = float(percent.strip().removesuffix("%")) / 100
    except ValueError:
        return None
    return share if 0 <= share <= MAX_PERCENT / 100 else None


def extend(fields: RequestFields, extension: Extension, model: Model | None) -> RequestFields:
    """The request for a picture on its larger canvas, with a mask of what is new there.

    The picture is fitted to the request's size first, as the server does it. For a model of a fixed size, and beyond
    the model's `max_pixels`, the canvas keeps that size and the picture on it is smaller. What is new starts from a
    stretched copy of the picture.

    Raises:
        typer.BadParameter: without a picture in a file, with a mask, or for a model that takes none of them.
    """
    image = fields.get("image")
    if not isinstance(image, bytes) or "mask" in fields:
        message = (
            "has a mask of its own: leave --mask out" if "mask" in fields else "needs the file of a picture: --image"
        )
        raise typer.BadParameter(message, param_hint=OPTION)
    if model is None or not {"image", "mask"} <= set(model.inputs):
        name = fields.get("model") or "the server's first model"
        raise typer.BadParameter(f"{name} takes no picture with a mask", param_hint=OPTION)
    size = (fields.get("width") or model.width, fields.get("height") or model.height)
    layout = lay_out(size, extension, model)
    mask = Image.new("L", layout.size, 255)
    mask.paste(0, layout.place)
    sides = {"width": layout.size[0], "height": layout.size[1]} if layout.size != size else {}
    return cast(RequestFields, {**fields, **sides, "image": _png(_drawn(image, size, layout)), "mask": _png(mask)})


def lay_out(size: tuple[int, int], extension: Extension, model: Model) -> Layout:
    """Where a picture of a size lies on its canvas. Its edges are those of whole latents, as in the mask."""
    sides = ((extension.left, extension.right), (extension.top, extension.bottom))
    unit = (model.raw.get("latent") or {}).get("downscale", 1)
    multiple = model.size_multiple or 1
    width, height = (
        -(-round(side * (1 + before + after)) // multiple) * multiple
        for side, (before, after) in zip(size, sides, strict=True)
    )
    grows = model.size_multiple is not None and width * height <= (model.max_pixels or width * height)
    canvas = (width, height) if grows else size
    scale = 1.0 if grows else 1 / max(1 + before + after for before, after in sides)
    place = [max(unit, _nearest(side * scale, unit)) for side in size]
    offset = [
        _nearest((whole - part) * (before / (before + after) if before + after else 0.5), unit)
        for whole, part, (before, after) in zip(canvas, place, sides, strict=True)
    ]
    return Layout(canvas, (offset[0], offset[1], offset[0] + place[0], offset[1] + place[1]))


def _nearest(length: float, unit: int) -> int:
    """The multiple of a unit that is nearest to a length; of two, the larger one."""
    return math.floor(length / unit + 0.5) * unit


def _drawn(data: bytes, size: tuple[int, int], layout: Layout) -> Image.Image:
    """The picture at its place, over a stretched copy of itself."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise typer.BadParameter("the file is no picture that can be read", param_hint="--image") from error
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = image.point(lambda value: value / 256).convert("L")
    mode = "RGBA" if image.has_transparency_data else "RGB"  # the server puts transparent parts over white
    fitted = ImageOps.fit(image.convert(mode), size, Image.Resampling.LANCZOS)
    canvas = fitted.resize(layout.size, Image.Resampling.BICUBIC)
    left, top, right, bottom = layout.place
    canvas.paste(fitted.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
    return canvas


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()
