"""Reads the arrays that clients send: .npy files of float32 (NumPy Enhancement Proposal 1), without numpy.

Nothing in the file is run: a header that describes anything but an array of float32 of the expected shape is refused.
"""

from __future__ import annotations

import array
import ast
import math
import struct
import sys
from dataclasses import dataclass

from denoised.jobs.errors import ArrayError

MAGIC = b"\x93NUMPY"
LENGTH_FORMATS = {1: "<H", 2: "<I", 3: "<I"}  # of the header's length, by the major version of the format
MAX_HEADER = 4096  # bytes; numpy writes 118
FLOAT_BYTES = 4
FLOAT32 = "<f4"


@dataclass(frozen=True)
class ArrayShape:
    """What a model denoises: channels, height and width of pixels or latents."""

    channels: int
    height: int
    width: int

    @property
    def key(self) -> str:
        """Its name in keys of the store."""
        return f"{FLOAT32}-{self.channels}x{self.height}x{self.width}"

    @property
    def sides(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    @property
    def size(self) -> int:
        """Bytes of its numbers."""
        return FLOAT_BYTES * math.prod(self.sides)


def read_array(data: bytes, shape: ArrayShape) -> bytes:
    """The numbers of an .npy file, little-endian float32 in the order of C.

    Raises:
        ArrayError: for a file that is not an .npy file, holds another type or shape, or a number that is not finite.
    """
    header, start = _header(data)
    found = {name: header.get(name) for name in ("descr", "fortran_order", "shape")}
    if found["descr"] != FLOAT32:
        raise ArrayError(f"the array is of type {found['descr']!r:.40} (allowed: {FLOAT32!r}, float32)")
    if found["fortran_order"] is not False:
        raise ArrayError("the array is in Fortran order (allowed: C order, the default of numpy)")
    if found["shape"] != shape.sides:
        raise ArrayError(f"the array has the shape {found['shape']!r:.60} (allowed here: {shape.sides})")
    numbers = data[start:]
    if len(numbers) != shape.size:
        raise ArrayError(f"the file has {len(numbers)} bytes of numbers (allowed: {shape.size})")
    if not _are_finite(numbers):
        raise ArrayError("the array holds NaN or infinite numbers")
    return numbers


def _header(data: bytes) -> tuple[dict[str, object], int]:
    """The dictionary at the head of the file, and where the numbers begin."""
    form = LENGTH_FORMATS.get(data[6]) if data.startswith(MAGIC) and len(data) > len(MAGIC) + 1 else None
    start = 8 + struct.calcsize(form) if form is not None else 0
    if form is None or len(data) < start:
        raise ArrayError("the file is not an .npy file (allowed: what numpy.save writes)")
    (length,) = struct.unpack_from(form, data, 8)
    if length > min(MAX_HEADER, len(data) - start):
        raise ArrayError(f"the head of the .npy file is damaged: it has {length} bytes (allowed: {MAX_HEADER})")
    try:
        header = ast.literal_eval(data[start : start + length].decode("latin-1").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ArrayError(f"the head of the .npy file is damaged ({type(error).__name__})") from error
    if not isinstance(header, dict):
        raise ArrayError("the head of the .npy file is damaged: it is not a dictionary")
    return header, start + length


def _are_finite(numbers: bytes) -> bool:
    values = array.array("f", numbers)
    if sys.byteorder == "big":
        values.byteswap()
    return all(map(math.isfinite, values))
