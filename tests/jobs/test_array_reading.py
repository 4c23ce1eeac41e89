"""Arrays that clients send: what numpy writes is read, and nothing else is."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoised.jobs.array_reading import MAX_HEADER, ArrayShape, read_array
from denoised.jobs.errors import ArrayError

SHAPE = ArrayShape(2, 3, 4)
NUMBERS = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7.5


def npy(array: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asanyarray(array), **options)
    return out.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_what_numpy_writes_is_read_bit_for_bit(version: tuple[int, int]) -> None:
    assert read_array(npy(NUMBERS, version=version), SHAPE) == NUMBERS.tobytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is not an .npy file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "the file is not an .npy file"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "the file is not an .npy file"),
        (b"\x93NUMPY\x02\x00\x01", "the file is not an .npy file"),
        (npy(NUMBERS.astype(np.float64)), r"of type '<f8' \(allowed: '<f4', float32\)"),
        (npy(NUMBERS.astype(">f4")), "of type '>f4'"),
        (npy(np.asfortranarray(NUMBERS)), "in Fortran order"),
        (npy(NUMBERS[None]), r"the shape \(1, 2, 3, 4\) \(allowed here: \(2, 3, 4\)\)"),
        (npy(NUMBERS)[:-1], r"has 95 bytes of numbers \(allowed: 96\)"),
        (npy(NUMBERS) + b"\0", "has 97 bytes of numbers"),
        (npy(np.where(NUMBERS == 0.5, np.nan, NUMBERS).astype(np.float32)), "NaN or infinite"),
        (npy(np.where(NUMBERS == 0.5, np.inf, NUMBERS).astype(np.float32)), "NaN or infinite"),
        (npy(np.array([{}], dtype=object), allow_pickle=True), r"of type '\|O'"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100), f"has 4294967295 bytes .allowed: {MAX_HEADER}"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"__import__('os')", "the head of the .npy file is damaged"),
        (b"\x93NUMPY\x01\x00\x04\x00" + b"[1] ", "is not a dictionary"),
        (b"\x93NUMPY\x01\x00\x00\x08" + b"(" * 2048, "the head of the .npy file is damaged"),
    ],
)
def test_anything_else_is_refused_by_cause_and_limit(data: bytes, message: str) -> None:
    with pytest.raises(ArrayError, match=message):
        read_array(data, SHAPE)


@given(st.binary(max_size=200), st.integers(0, 230))
def test_damage_raises_no_other_error(noise: bytes, at: int) -> None:
    data = npy(NUMBERS)
    damaged = data[:at] + noise + data[at + len(noise) :]
    try:
        numbers = read_array(damaged, SHAPE)
    except ArrayError:
        return
    assert len(numbers) == SHAPE.size
