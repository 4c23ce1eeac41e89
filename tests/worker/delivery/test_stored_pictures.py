"""The pictures of a job as the store has them: anyone who may write there may have written anything."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from denoised.jobs.errors import RecordError
from denoised.jobs.record import JobRecord
from denoised.jobs.store.store import Store
from denoised.worker.delivery.pictures.stored_pictures import decode_stored, read_stored_pictures
from tests.fake_model import FakeModel

DIGEST = "sha256:" + "0" * 64
CARD = FakeModel().card  # gray, 4×4


def png(mode: str = "L", size: tuple[int, int] = (4, 4), format: str = "png") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 7).save(out, format)
    return out.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A small PNG whose header claims another size."""
    data = png()
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.fixture
def record(request_of: Callable[..., Any]) -> JobRecord:
    inputs = {"image": "denoised:input::0:4x4x1"}
    return JobRecord("a", "", request_of(image=DIGEST), 0.0, inputs=inputs)


def test_the_pixels_are_those_that_were_stored(store: Store, record: JobRecord) -> None:
    store.client.set("denoised:input::0:4x4x1", png())
    found = decode_stored(read_stored_pictures(store, record), record, CARD)
    assert np.array_equal(found["image"], np.full((4, 4, 1), 7))
    assert JobRecord.from_fields(record.to_fields()).inputs == record.inputs


def test_a_picture_that_is_gone_fails_its_job_by_name(store: Store, record: JobRecord) -> None:
    with pytest.raises(RecordError, match="image of the request is not stored"):
        read_stored_pictures(store, record)
    with pytest.raises(RecordError, match="image of the request is not stored"):
        read_stored_pictures(store, replace(record, inputs={}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        png()[:40],
        png("RGB"),
        png(size=(4, 5)),
        png_of_size(20_000, 20_000),
        png(format="gif"),
    ],
    ids=["empty", "text", "cut", "color", "size", "huge", "gif"],
)
def test_anything_but_a_png_of_the_jobs_size_is_refused(data: bytes, record: JobRecord) -> None:
    with pytest.raises(RecordError, match="image of the request"):
        decode_stored({"image": data}, record, CARD)
