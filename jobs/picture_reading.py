"""Reads the pictures that clients send. The only place where a file from outside is decoded.

A file is checked before its pixels are decoded: its kind, its number of pixels, and that it is one picture. What comes
out has the size and the channels of the model: turned upright as EXIF says, transparent parts over white, 16-bit
samples rounded to 8, enlarged or reduced until it covers the size, and cropped to its center.

Knows no request and no store. Needs Pillow alone.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from denoised.jobs.errors import PictureError

FORMATS = ("PNG", "JPEG", "WEBP")
NAMES = "PNG, JPEG or WebP"
MAX_PIXELS = 4096 * 4096
# Of a JPEG: progressive files may repeat the whole picture in each of thousands of scans.
MAX_SCANNED_PIXELS = 400_000_000
BACKGROUND = "white"  # behind transparent parts
START_OF_SCAN = b"\xff\xda"
WEBP_HEAD_BYTES = 30
COMPRESS_LEVEL = 4  # of stored pictures


@dataclass(frozen=True)
class PictureShape:
    """What a model takes: width and height in pixels; 1 channel (gray) or 3 (RGB)."""

    width: int
    height: int
    channels: int

    @property
    def key(self) -> str:
        """Its name in keys of the store."""
        return f"{self.width}x{self.height}x{self.channels}"

    @property
    def mode(self) -> str:
        """Pillow's mode of such a picture."""
        return "L" if self.channels == 1 else "RGB"


@dataclass(frozen=True)
class ReadPicture:
    """A picture as a model takes it.

    Attributes:
        png: Its pixels, as a PNG.
        changes: What was done to the given picture, in words; empty if nothing was.
    """

    png: bytes
    changes: str


def read_picture(data: bytes, shape: PictureShape) -> ReadPicture:
    """Read a file as a picture of some shape.

    Raises:
        PictureError: for a file that is no picture, too large, animated or damaged.
    """
    fitted, changes = _fit(decode(data), shape)
    return ReadPicture(_png(_flatten(fitted, shape.mode)), changes)


def mask_from_alpha(data: bytes) -> bytes | None:
    """A PNG that is white where a picture is transparent and black where it is opaque, which is how other programs
    write a mask; None for a picture without transparency.

    Raises:
        PictureError: as `read_picture`.
    """
    image = decode(data)
    if image.mode not in ("LA", "RGBA") or image.getchannel("A").getextrema() == (255, 255):
        return None
    return _png(ImageOps.invert(image.getchannel("A")))


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png", compress_level=COMPRESS_LEVEL)
    return out.getvalue()


def decode(data: bytes) -> Image.Image:
    """The upright picture in a file, in the mode L, LA, RGB, RGBA or CMYK.

    Raises:
        PictureError: as `read_picture`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata, and of sizes that are checked here
        try:
            _check_webp_size(data)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image.width, image.height)
            _check_kind(image, data)
            image.load()
            return ImageOps.exif_transpose(_with_8_bits(image))
        except PictureError:
            raise
        except UnidentifiedImageError as error:
            raise PictureError(f"the file is not a {NAMES}") from error
        except Image.DecompressionBombError as error:
            raise PictureError(f"the picture is too large (allowed: {MAX_PIXELS} pixels)") from error
        except Exception as error:  # Pillow's decoders raise a dozen kinds of exceptions for damaged files
            raise PictureError(f"the file is damaged ({(str(error) or type(error).__name__)[:100]})") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise PictureError(f"the picture has {width}×{height} pixels (allowed: {MAX_PIXELS} in all)")


def _check_webp_size(data: bytes) -> None:
    """Check the size of a WebP, whose decoder allocates its canvas when the file is opened (RFC 9649, 2)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < WEBP_HEAD_BYTES:
        return
    kind = data[12:16]
    if kind == b"VP8X":  # the canvas: 24-bit numbers, less one
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":  # 14-bit numbers, less one, after a signature byte
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:  # VP8: 14-bit numbers after the frame tag and its start code
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    _check_size(width, height)


def _check_kind(image: Image.Image, data: bytes) -> None:
    # Cameras append small copies to a JPEG, which makes it a multi-picture file for Pillow, but no animation.
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise PictureError(f"the file is an animation (allowed: one picture as {NAMES})")
    scans = data.count(START_OF_SCAN) if data[:2] == b"\xff\xd8" else 1
    if scans * image.width * image.height > MAX_SCANNED_PIXELS:
        raise PictureError(f"the JPEG has {scans} scans of {image.width}×{image.height} pixels, too many to decode")


def _with_8_bits(image: Image.Image) -> Image.Image:
    """The picture without a palette and with 8-bit samples."""
    if image.mode.startswith("I") or image.mode == "F":
        exif = image.getexif()
        rounded = image.convert("I").point(lambda level: level * (255 / 65535) + 0.5).convert("L")
        rounded.info = image.info
        rounded.getexif().update(exif)
        return rounded
    if image.mode in ("1", "P", "PA", "La", "RGBa", "RGBX"):
        transparent = image.has_transparency_data
        image = image.convert("RGBA" if transparent else "L" if image.mode == "1" else "RGB")
    elif image.mode in ("L", "RGB") and "transparency" in image.info:  # one color is transparent
        image = image.convert("RGBA")
    return image


def _fit(image: Image.Image, shape: PictureShape) -> tuple[Image.Image, str]:
    """The picture at the size of the shape, and what was done for it."""
    target = (shape.width, shape.height)
    if image.size == target:
        return image, ""
    scale = max(shape.width / image.width, shape.height / image.height)
    whole = round(image.width * scale), round(image.height * scale)
    fitted = ImageOps.fit(image, target, Image.Resampling.LANCZOS)
    given = f"{image.width}×{image.height} pixels were"
    if whole == target:
        return fitted, f"{given} resized to {shape.width}×{shape.height}"
    cropped = f"cropped to the {shape.width}×{shape.height} in the center"
    if whole == image.size:
        return fitted, f"{given} {cropped}"
    return fitted, f"{given} resized to {whole[0]}×{whole[1]} and {cropped}"


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """The picture over the background, in a mode without transparency."""
    if image.mode in ("LA", "RGBA"):
        background = Image.new("RGBA", image.size, BACKGROUND)
        image = Image.alpha_composite(background, image.convert("RGBA"))
    return image.convert(mode)
