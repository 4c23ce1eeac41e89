"""A picture file of any kind as RGB bytes: upright, opaque, 8 bits deep, square.

The decoding is Pillow's. What is decided here is what a file means: EXIF's turn is applied
first, deep grey is scaled and not cut off, transparency shows a background, an animation
is its first frame.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from denoised.model.errors import DataError

# A file is of its content's kind, whatever its name says; none of Pillow's other readers gets to see it.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # TIFF 6.0, section 8


def read_image(path: Path, size: int, background: tuple[int, int, int]) -> Tensor:
    """A file as (3, size, size) uint8: the middle square, resized by Lanczos.

    16-bit grey is divided by 257 and rounded; of 16-bit colour Pillow gives the upper byte. CMYK
    JPEGs are taken as inverted, as Adobe writes them and browsers read them; colour profiles are
    not applied. background: RGB bytes, what shows through where a picture is transparent.

    Raises:
        DataError: for a file that is no whole picture, or over Pillow's limit of 89 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                flat = _flat(image, background)
    except UnidentifiedImageError as error:
        raise DataError(f"{path} (none of {', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's decoders meet broken bytes with errors of a dozen kinds
        raise DataError(f"{path} ({' '.join(str(error).split()) or type(error).__name__})") from error
    square = ImageOps.fit(flat, (size, size), method=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def _flat(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The first frame as RGB, upright, over the background."""
    _check_depth(image)
    upright = _eight_bits(ImageOps.exif_transpose(image))
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    ground = Image.new("RGBA", upright.size, background)
    return Image.alpha_composite(ground, upright.convert("RGBA")).convert("RGB")


def _check_depth(image: Image.Image) -> None:
    """Refuse what does not say which number is white, or says so where Pillow does not listen."""
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits have no known white: convert it to 8 or 16 bits")
    if image.mode.startswith("I;16") and isinstance(image, TiffImagePlugin.TiffImageFile):
        kind = (image.tag_v2.get(BITS_PER_SAMPLE), image.tag_v2.get(PHOTOMETRIC))
        if kind != ((16,), 1):
            raise ValueError("a deep grey TIFF of 12 bits, or with white as 0: convert it to 8 or 16 bits")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (Pillow's I;16 and its kin) as v/257, rounded; other images as they are."""
    if not image.mode.startswith("I;16"):
        return image
    deep = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:  # the one grey that is see-through
        grey.putalpha(Image.fromarray(np.where(deep == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey
