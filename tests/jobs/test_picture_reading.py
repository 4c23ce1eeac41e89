"""Pictures from outside: what is read, how, and what is refused before it costs anything."""

from __future__ import annotations

import io
import random
import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from denoised.jobs.errors import PictureError
from denoised.jobs.picture_reading import MAX_PIXELS, PictureShape, decode, mask_from_alpha, read_picture

SMALL = PictureShape(8, 8, 3)
GRAY = PictureShape(8, 8, 1)


def file_of(image: Image.Image, format: str = "png", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def colors(width: int = 8, height: int = 8, mode: str = "RGB") -> Image.Image:
    generator = random.Random(7)
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (width, height), generator.randbytes(width * height * channels))


def read(data: bytes, shape: PictureShape = SMALL) -> Image.Image:
    return Image.open(io.BytesIO(read_picture(data, shape).png))


@pytest.mark.parametrize(("format", "options"), [("png", {}), ("webp", {"lossless": True})])
def test_a_picture_of_the_right_size_keeps_every_pixel(format: str, options: dict[str, Any]) -> None:
    image = colors()
    found = read_picture(file_of(image, format, **options), SMALL)
    assert found.changes == ""
    assert Image.open(io.BytesIO(found.png)).tobytes() == image.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_equals_the_picture_that_was_turned(orientation: int) -> None:
    stored = colors(12, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = stored.copy()
    turned.getexif()[0x0112] = orientation
    turned = ImageOps.exif_transpose(turned)
    shape = PictureShape(*turned.size, 3)
    assert read(file_of(stored, exif=exif), shape).tobytes() == turned.tobytes()
    assert turned.size == ((12, 8) if orientation < 5 else (8, 12))


def test_16_bit_samples_are_rounded_and_not_clipped() -> None:
    levels = [0, 1, 128, 257, 12_850, 32_768, 65_407, 65_535]
    image = Image.frombytes("I;16", (8, 8), struct.pack("<8H", *levels) * 8)
    expected = [round(level * 255 / 65535) for level in levels]
    assert list(read(file_of(image), GRAY).tobytes()[:8]) == expected
    assert read(file_of(image)).mode == "RGB"


def test_a_16_bit_picture_is_turned_as_its_exif_says() -> None:
    image = Image.frombytes("I;16", (8, 4), struct.pack("<32H", *range(0, 64_000, 2_000)))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(file_of(image, exif=exif)).size == (4, 8)


def test_palettes_and_bits_become_colors() -> None:
    image = colors().quantize(16)
    assert read(file_of(image)).tobytes() == image.convert("RGB").tobytes()
    bits = colors(mode="L").convert("1")
    assert read(file_of(bits), GRAY).tobytes() == bits.convert("L").tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_becomes_white(mode: str) -> None:
    options: dict[str, Any] = {}
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (8, 8), (*(10,) * (len(mode) - 1), 0))
    else:
        image = Image.new(mode, (8, 8), 0)
        options = {"transparency": 0 if mode == "P" else (0, 0, 0)}
    assert set(read(file_of(image, **options)).tobytes()) == {255}


def test_what_is_half_transparent_is_mixed_with_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 100, 200, 128))
    expected = [round(255 + (channel - 255) * 128 / 255) for channel in (0, 100, 200)]
    found = read(file_of(image)).getpixel((3, 3))
    assert isinstance(found, tuple)
    assert all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True))


def test_cmyk_and_gray_become_rgb_and_color_becomes_gray() -> None:
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = read(file_of(ink, "jpeg", quality=95)).getpixel((4, 4))
    assert isinstance(red, tuple)
    assert red[0] > 230
    assert max(red[1:]) < 40
    gray = colors(mode="L")
    assert read(file_of(gray)).tobytes() == gray.convert("RGB").tobytes()
    assert read(file_of(colors()), GRAY).tobytes() == colors().convert("L").tobytes()


def test_a_mask_is_white_where_the_file_is_transparent() -> None:
    image = Image.new("RGBA", (8, 8), (200, 10, 10, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    mask = mask_from_alpha(file_of(image))
    assert mask is not None
    found = read(mask, GRAY)
    assert (found.getpixel((1, 1)), found.getpixel((6, 6))) == (255, 0)
    assert mask_from_alpha(file_of(Image.new("L", (8, 8), 40))) is None
    assert mask_from_alpha(file_of(Image.new("RGBA", (8, 8), (1, 2, 3, 255)))) is None


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((16, 16), "16×16 pixels were resized to 8×8"),
        ((16, 8), "16×8 pixels were cropped to the 8×8 in the center"),
        ((32, 16), "32×16 pixels were resized to 16×8 and cropped to the 8×8 in the center"),
        ((4, 4), "4×4 pixels were resized to 8×8"),
    ],
)
def test_what_was_changed_is_said(size: tuple[int, int], said: str) -> None:
    found = read_picture(file_of(colors(*size)), SMALL)
    assert found.changes == said
    assert Image.open(io.BytesIO(found.png)).size == (8, 8)


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 1, color: int = 0) -> bytes:
    """A PNG of these chunks, whatever they hold."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    parts = [head, *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def hostile_files() -> dict[str, bytes]:
    whole = file_of(colors(64, 64), "jpeg")
    frames = [colors(8, 8), *(Image.new("RGB", (8, 8), (k, k, k)) for k in range(40))]
    film = {"save_all": True, "append_images": frames[1:], "duration": 10}
    text = b"Comment\0\0" + _zeros(1 << 30)
    scans = file_of(colors(2048, 2048), "jpeg", progressive=True)
    return {
        "30,000 pixels along each side": png(30_000, 30_000, (b"IDAT", _zeros(30_000 * 3751))),
        "a WebP as large as they come": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10)
        + b"\0\0\0\0" + b"\xfe\x3f\0" * 2,
        "a lossless WebP": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8L" + struct.pack("<IBI", 10, 0x2F, 0xFFFFFFF)
        + b"\0" * 6,
        "a gigabyte of text": png(8, 8, (b"zTXt", text), (b"IDAT", _zeros(16))),
        "an animated PNG": file_of(frames[0], "png", **film),
        "an animated WebP": file_of(frames[0], "webp", **film),
        "a GIF": file_of(frames[0], "gif", **film),
        "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "a page": b"<!doctype html><script>alert(1)</script>",
        "nothing": b"",
        "a truncated JPEG": whole[: len(whole) // 2],
        "a truncated PNG": file_of(colors(64, 64))[:2000],
        "a JPEG of many scans": scans[:-2] + scans[scans.index(b"\xff\xda") : -2] * 20 + scans[-2:],
        "a TIFF": file_of(colors(), "tiff"),
    }  # fmt: skip


def _zeros(count: int) -> bytes:
    """Zeros, compressed without ever being in memory."""
    packer, part = zlib.compressobj(1), bytes(1 << 20)
    whole, rest = divmod(count, len(part))
    return b"".join([*(packer.compress(part) for _ in range(whole)), packer.compress(bytes(rest)), packer.flush()])


@pytest.fixture(scope="module")
def hostile() -> dict[str, bytes]:
    return hostile_files()


def peak_bytes() -> int:
    """The largest resident size of this process since `reset_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def test_hostile_files_are_refused_within_a_second_and_100_megabytes(hostile: dict[str, bytes]) -> None:
    for name, data in hostile.items():
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, started = peak_bytes(), time.thread_time()
        tracemalloc.start()
        with pytest.raises(PictureError):
            read_picture(data, SMALL)
        tracemalloc.stop()
        assert time.thread_time() - started < 1, name
        assert peak_bytes() - before < 100e6, name


def test_a_refusal_says_what_is_wrong(hostile: dict[str, bytes]) -> None:
    def message(name: str) -> str:
        with pytest.raises(PictureError) as error:
            read_picture(hostile[name], SMALL)
        return str(error.value)

    assert message("30,000 pixels along each side") == f"the picture is too large (allowed: {MAX_PIXELS} pixels)"
    assert (
        message("a WebP as large as they come") == f"the picture has 16383×16383 pixels (allowed: {MAX_PIXELS} in all)"
    )
    assert message("an animated PNG").startswith("the file is an animation")
    assert message("a GIF") == message("an SVG") == "the file is not a PNG, JPEG or WebP"
    assert message("a truncated JPEG").startswith("the file is damaged")


def test_a_photograph_with_a_small_copy_inside_is_no_animation() -> None:
    photo = colors(32, 32)
    data = file_of(photo, "mpo", save_all=True, append_images=[colors(8, 8)])
    assert read(data, PictureShape(32, 32, 3)).size == (32, 32)
