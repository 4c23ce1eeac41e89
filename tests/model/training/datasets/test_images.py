"""Image files of every kind are read as they should look."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from denoised.model.errors import DataError
from denoised.model.training.datasets.images import read_image

WHITE = (255, 255, 255)
ORIENTATION = 0x0112
# Four fields of 8×8, no two alike however they are turned: dark, red, green, blue.
FIELDS = np.zeros((16, 16, 3), dtype=np.uint8)
FIELDS[:8, 8:] = (200, 0, 0)
FIELDS[8:, :8] = (0, 200, 0)
FIELDS[8:, 8:] = (0, 0, 200)
# What a viewer does with the stored pixels for each value of the tag (EXIF 2.32, table 6).
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],  # row 0 is the top, column 0 the right side
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),  # row 0 is the left side, column 0 the top
    6: lambda a: np.rot90(a, -1),  # row 0 is the right side
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def read(path: Path, size: int = 16, background: tuple[int, int, int] = WHITE) -> Tensor:
    return read_image(path, size, background)


def values(path: Path, image: Image.Image, background: tuple[int, int, int] = WHITE, **save: object) -> list[list[int]]:
    """The pixels, row by row, of a square image written to a file and read back, RGB as lists."""
    image.save(path, **save)
    return read(path, image.width, background).permute(1, 2, 0).reshape(-1, 3).tolist()


def gray(*levels: int) -> list[list[int]]:
    return [[level] * 3 for level in levels]


def square(levels: list[int], mode: str = "L") -> Image.Image:
    """A 2×2 image of single-number pixels."""
    image = Image.new(mode, (2, 2))
    image.putdata(levels)
    return image


def deep(levels: list[int]) -> Image.Image:
    """A 2×2 image of 16-bit gray."""
    return Image.fromarray(np.array(levels, dtype=np.uint16).reshape(2, 2))


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("webp", {"lossless": True}), ("tif", {})])
def test_an_exif_rotation_equals_rotating_the_pixels(
    tmp_path: Path, orientation: int, suffix: str, options: dict[str, object]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(FIELDS).save(tmp_path / f"camera.{suffix}", exif=exif, **options)
    turned = np.ascontiguousarray(TURNS[orientation](FIELDS))
    Image.fromarray(turned).save(tmp_path / f"turned.{suffix}", **options)
    found = read(tmp_path / f"camera.{suffix}")
    assert torch.equal(found, read(tmp_path / f"turned.{suffix}"))
    assert torch.equal(found, torch.from_numpy(turned).permute(2, 0, 1))


@pytest.mark.parametrize("orientation", TURNS)
def test_a_rotated_jpeg_shows_the_right_square_in_each_corner(tmp_path: Path, orientation: int) -> None:
    """JPEG encodes blocks of 8×8: uniform squares of that size keep their color within a level or two."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(FIELDS).save(tmp_path / "camera.jpg", exif=exif, quality=100, subsampling=0)
    wanted = torch.from_numpy(np.ascontiguousarray(TURNS[orientation](FIELDS))).permute(2, 0, 1).int()
    assert (read(tmp_path / "camera.jpg").int() - wanted).abs().max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_and_rounded(tmp_path: Path, suffix: str) -> None:
    """v/257: 65535 is white, 32768 is 127.502, and 128 and 129 are on either side of one half."""
    assert values(tmp_path / f"a.{suffix}", deep([0, 128, 129, 65535])) == gray(0, 0, 1, 255)
    assert values(tmp_path / f"b.{suffix}", deep([32768, 257 * 77, 257 * 77 + 128, 257 * 77 + 129])) == gray(
        128, 77, 77, 78
    )


def test_every_byte_survives_being_stored_as_16_bits(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0].flatten().tolist() == list(range(256))


def test_a_transparent_16_bit_gray_shows_the_background(tmp_path: Path) -> None:
    found = values(tmp_path / "a.png", deep([0, 257, 258, 65535]), (10, 20, 30), transparency=257)
    assert found == [[0, 0, 0], [10, 20, 30], [1, 1, 1], [255, 255, 255]]


def png(side: int, depth: int, color: int, rows: bytes) -> bytes:
    """A square PNG of a kind that Pillow does not write; each row begins with a 0, its filter."""
    header = struct.pack(">2I5B", side, side, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    data = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + data


def test_16_bit_color_keeps_its_upper_byte(tmp_path: Path) -> None:
    pixels = np.array([[[0, 1, 2], [3, 4, 5]], [[99, 254, 255], [7, 8, 9]]])
    rows = b"".join(b"\0" + (257 * row).astype(">u2").tobytes() for row in pixels)
    (tmp_path / "a.png").write_bytes(png(2, 16, 2, rows))
    assert read(tmp_path / "a.png", 2).permute(1, 2, 0).tolist() == pixels.tolist()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_one_bit_is_black_and_white(tmp_path: Path, suffix: str) -> None:
    assert values(tmp_path / f"a.{suffix}", square([0, 255, 255, 0], "1")) == gray(0, 255, 255, 0)


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif"])
def test_palette_indices_are_looked_up(tmp_path: Path, suffix: str) -> None:
    image = square([0, 1, 2, 1], "P")
    image.putpalette([9, 8, 7, 200, 0, 0, 0, 0, 200])
    assert values(tmp_path / f"a.{suffix}", image) == [[9, 8, 7], [200, 0, 0], [0, 0, 200], [200, 0, 0]]


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_transparent_palette_color_shows_the_background(tmp_path: Path, suffix: str) -> None:
    image = square([0, 1, 2, 1], "P")
    image.putpalette([9, 8, 7, 200, 0, 0, 0, 0, 200])
    found = values(tmp_path / f"a.{suffix}", image, (1, 2, 3), transparency=1)
    assert found == [[9, 8, 7], [1, 2, 3], [0, 0, 200], [1, 2, 3]]


def test_a_palette_may_be_partly_transparent(tmp_path: Path) -> None:
    image = square([0, 1, 2, 1], "P")
    image.putpalette([0, 0, 0, 255, 255, 255, 0, 0, 0])
    found = values(tmp_path / "a.png", image, (255, 255, 255), transparency=bytes([255, 0, 51]))
    assert found == gray(0, 255, 204, 255)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_alpha_mixes_with_the_background(tmp_path: Path, suffix: str) -> None:
    """c·a + background·(1 − a) with a = 0, 51/255 = 0.2, 204/255 = 0.8, 1."""
    image = Image.new("RGBA", (2, 2))
    image.putdata([(200, 100, 0, 0), (200, 100, 0, 51), (200, 100, 0, 204), (200, 100, 0, 255)])
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    found = values(tmp_path / f"a.{suffix}", image, (100, 0, 50), **options)
    assert found == [[100, 0, 50], [120, 20, 40], [180, 80, 10], [200, 100, 0]]


def test_gray_with_alpha_mixes_with_the_background(tmp_path: Path) -> None:
    image = Image.new("LA", (2, 2))
    image.putdata([(0, 0), (0, 51), (100, 204), (7, 255)])
    assert values(tmp_path / "a.png", image) == gray(255, 204, 131, 7)


@pytest.mark.parametrize(("mode", "level"), [("L", 7), ("RGB", (7, 7, 7))])
def test_a_single_transparent_color_shows_the_background(tmp_path: Path, mode: str, level: object) -> None:
    image = Image.new(mode, (2, 2), level)
    image.putpixel((1, 1), 8 if mode == "L" else (7, 7, 8))
    last = [8, 8, 8] if mode == "L" else [7, 7, 8]
    assert values(tmp_path / "a.png", image, (1, 2, 3), transparency=level) == [[1, 2, 3]] * 3 + [last]


def test_a_transparent_image_has_no_dark_fringe_after_resizing(tmp_path: Path) -> None:
    """Transparent pixels are often stored as black: blending after resizing would darken the edge."""
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 7, 16))
    image.save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", 8).min() == 255


def test_gray_is_unchanged(tmp_path: Path) -> None:
    for suffix in ("png", "bmp", "tif", "gif"):
        assert values(tmp_path / f"a.{suffix}", square([0, 1, 128, 255])) == gray(0, 1, 128, 255)


@pytest.mark.parametrize(
    ("ink", "color"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 51), (204, 204, 204)),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_ink_on_white(tmp_path: Path, ink: tuple[int, ...], color: tuple[int, int, int], suffix: str) -> None:
    """(255 − C)(255 − K)/255. The JPEG is written inverted, with Adobe's marker, as all CMYK JPEGs are."""
    Image.new("CMYK", (8, 8), ink).save(tmp_path / f"a.{suffix}", **({"quality": 100} if suffix == "jpg" else {}))
    if suffix == "jpg":
        assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    found = read(tmp_path / f"a.{suffix}", 8).permute(1, 2, 0).reshape(-1, 3).int()
    assert (found - torch.tensor(color)).abs().max() <= 2


@pytest.mark.parametrize(("suffix", "options"), [("gif", {}), ("png", {}), ("webp", {"lossless": True}), ("tif", {})])
def test_the_first_frame_of_an_animation_is_used(tmp_path: Path, suffix: str, options: dict[str, object]) -> None:
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **options)
    assert read(tmp_path / f"a.{suffix}", 8)[:, 4, 4].tolist() == [200, 0, 0]


def test_the_content_decides_the_format_not_the_suffix(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "a.jpg", format="png")
    assert read(tmp_path / "a.jpg", 8)[:, 0, 0].tolist() == [9, 8, 7]


def bomb(path: Path, side: int = 20_000) -> None:
    """A PNG of side² one-bit pixels in a few kilobytes."""
    path.write_bytes(png(side, 1, 0, b"\0" * (side // 8 + 1) * side))


def half_a_gif(path: Path) -> None:
    Image.fromarray(FIELDS).save(path, format="gif")
    path.write_bytes(path.read_bytes()[:-40])


def torn(path: Path) -> None:
    noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(path, format="jpeg")
    path.write_bytes(path.read_bytes()[:2000])


def postscript(path: Path) -> None:
    """A file that Pillow would pass to an interpreter because of its content."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")


def white_is_zero(path: Path) -> None:
    deep([0, 1, 2, 3]).save(path, format="tiff")
    data = path.read_bytes()
    entry = struct.pack("<HHII", 262, 3, 1, 1)
    assert data.count(entry) == 1
    path.write_bytes(data.replace(entry, struct.pack("<HHII", 262, 3, 1, 0)))


REFUSED = {
    "an empty file": (lambda path: path.write_bytes(b""), "none of PNG, JPEG, WEBP, BMP, GIF, TIFF"),
    "text": (lambda path: path.write_text("no picture at all"), "none of PNG, JPEG"),
    "PostScript": (postscript, "none of PNG, JPEG"),
    "half a JPEG": (torn, "truncated"),
    "half a GIF": (half_a_gif, "truncated"),
    "a bomb": (bomb, "400000000 pixels"),
    "a smaller bomb": (lambda path: bomb(path, 9_600), "exceeds limit of 89478485 pixels"),
    "floats": (lambda path: Image.new("F", (8, 8), 0.5).save(path, format="tiff"), "no known white"),
    "32-bit integers": (lambda path: Image.new("I", (8, 8), 70_000).save(path, format="tiff"), "no known white"),
    "deep gray with white as 0": (white_is_zero, "with white as 0"),
    "a folder": (lambda path: path.mkdir(), "directory"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_unreadable_files_are_refused_by_name_in_one_line(tmp_path: Path, kind: str) -> None:
    write, reason = REFUSED[kind]
    path = tmp_path / "a.png"
    write(path)
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path} (")
    assert reason in message
    assert "\n" not in message
