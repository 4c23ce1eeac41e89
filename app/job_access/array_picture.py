"""A picture of an array of numbers of either sign."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import cast

from PIL import Image

FLOAT_BYTES = 4


def render_array(npy: bytes, shape: Sequence[int]) -> bytes | None:
    """A PNG of an .npy file of little-endian float32; None if it does not hold an array of this shape.

    Gray (128) is 0; white and black are ± the largest magnitude of all. shape: (channels, height, width).
    """
    channels, height, width = shape
    size = FLOAT_BYTES * math.prod(shape)
    if len(npy) <= size:
        return None
    data, plane = npy[len(npy) - size :], FLOAT_BYTES * height * width  # the numbers are the file's end
    fields = [
        Image.frombytes("F", (width, height), data[k * plane : (k + 1) * plane], "raw", "F;32F")
        for k in range(channels)
    ]
    largest = max(abs(cast(float, bound)) for field in fields for bound in field.getextrema())
    if not math.isfinite(largest):
        return None
    scale = 127 / largest if largest else 0.0
    planes = [field.point(lambda value: value * scale + 128.0).convert("L") for field in fields]
    out = io.BytesIO()
    _joined(planes).save(out, "PNG")
    return out.getvalue()


def _joined(planes: Sequence[Image.Image]) -> Image.Image:
    """One plane in gray, three in color, others side by side."""
    if len(planes) == 3:
        return Image.merge("RGB", list(planes))
    width, height = planes[0].size
    joined = Image.new("L", (width * len(planes), height))
    for k, plane in enumerate(planes):
        joined.paste(plane, (k * width, 0))
    return joined
