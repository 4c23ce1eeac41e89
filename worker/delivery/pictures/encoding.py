"""Pixels to files: PNG, WebP, JPEG, and small preview frames."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.PngImagePlugin import PngInfo

Pixels = npt.NDArray[np.uint8]

PARAMETERS = "parameters"
# Loaded at the start: a format whose library finds no memory when it is first used is lost to Pillow for good.
PLUGINS = (PngImagePlugin, JpegImagePlugin, WebPImagePlugin)


def encode(pixels: Pixels, format: str, parameters: dict[str, Any]) -> bytes:
    """(H, W, C) bytes, C = 1 or 3, as a file.

    A PNG carries `parameters` as iTXt, the request that makes it again. WebP is lossless,
    JPEG of quality 95 without chroma subsampling. The same pixels and parameters give the
    same bytes.
    """
    image, out = _image(pixels), io.BytesIO()
    if format == "png":
        info = PngInfo()
        info.add_itxt(PARAMETERS, json.dumps(parameters, ensure_ascii=False))
        image.save(out, "png", pnginfo=info)
    elif format == "webp":
        image.save(out, "webp", lossless=True)
    else:
        image.save(out, "jpeg", quality=95, subsampling=0)
    return out.getvalue()


def encode_frame(pixels: Pixels) -> bytes:
    """A preview frame: a PNG, compressed for speed."""
    out = io.BytesIO()
    _image(pixels).save(out, "png", compress_level=1)
    return out.getvalue()


def _image(pixels: Pixels) -> Pillow.Image:
    return Pillow.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
