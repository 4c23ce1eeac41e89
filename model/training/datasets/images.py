"""Reading an image file of any kind as RGB bytes: upright, opaque, 8 bits deep, of one size.

Pillow decodes the file. This module decides what the pixels mean: EXIF orientation is applied
first, deep gray is scaled rather than clipped, transparent pixels show a background, and an
animation is represented by its first frame.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from denoised.model.errors import DataError

# The content decides the format, whatever the suffix says; Pillow's other readers are never tried.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF 6.0, section 8


def read_image(path: Path, size: int | tuple[int, int], background: tuple[int, int, int]) -> Tensor:
    """The center of an image file, resized with a Lanczos filter: (3, height, width) uint8.

    16-bit gray is divided by 257 and rounded; of 16-bit color Pillow returns the upper byte. CMYK
    JPEGs are assumed to be inverted, as Adobe writes them and browsers read them. Color profiles
    are not applied.

    size: of a square, or (width, height).
    background: RGB bytes that show through transparent pixels.

    Raises:
        DataError: if the file is not a complete image, or exceeds Pillow's limit of 89 million pixels.
    """
    if path.exists() and not path.is_file():  # a FIFO would be waited for
        raise DataError(f"{path} ({'a directory' if path.is_dir() else 'not a regular file'})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                flat = _flatten(image, background)
    except UnidentifiedImageError as error:
        raise DataError(f"{path} (none of {', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds of errors for broken files
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(f"{path} ({' '.join(reason.split()) or type(error).__name__})") from error
    shape = (size, size) if isinstance(size, int) else size
    cropped = ImageOps.fit(flat, shape, method=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The first frame as RGB, upright, over the background."""
    _check_depth(image)
    upright = _to_eight_bits(ImageOps.exif_transpose(image))
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    backdrop = Image.new("RGBA", upright.size, background)
    return Image.alpha_composite(backdrop, upright.convert("RGBA")).convert("RGB")


def _check_depth(image: Image.Image) -> None:
    """Refuse files that do not say which value is white, or say it in a tag that Pillow ignores."""
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known white: convert it to 8 or 16 bits")
    if image.mode.startswith("I;16") and isinstance(image, TiffImagePlugin.TiffImageFile):
        kind = (image.tag_v2.get(BITS_PER_SAMPLE), image.tag_v2.get(PHOTOMETRIC))
        if kind != ((16,), 1):  # 1: BlackIsZero
            raise ValueError("a deep gray TIFF of 12 bits, or with white as 0: convert it to 8 or 16 bits")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray (Pillow's modes I;16…) as round(v/257), since 257 = 65535/255; other images unchanged."""
    if not image.mode.startswith("I;16"):
        return image
    deep = np.asarray(image).astype(np.uint32)
    gray = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:  # the one gray level that is transparent
        gray.putalpha(Image.fromarray(np.where(deep == image.info["transparency"], 0, 255).astype(np.uint8)))
    return gray
