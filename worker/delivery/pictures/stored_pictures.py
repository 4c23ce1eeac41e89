"""The pictures and arrays that a job starts from, read from the store.

The front end has written them as PNGs of the model's size (`jobs.picture_reading`). Other programs may write to Redis,
too, so the size is checked before anything is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from denoised.jobs.array_reading import FLOAT32, FLOAT_BYTES
from denoised.jobs.control import control_index
from denoised.jobs.errors import RecordError
from denoised.jobs.picture_reading import PictureShape
from denoised.jobs.record import JobRecord
from denoised.jobs.request_pictures import pictures_of
from denoised.jobs.store.store import Store
from denoised.jobs.task_request import ARRAY
from denoised.model.serving.card import ModelCard
from denoised.worker.delivery.pictures.encoding import Pixels


def read_stored_pictures(store: Store, record: JobRecord) -> dict[str, bytes]:
    """The PNGs of a job's pictures, by the names of `pictures_of`.

    Raises:
        RecordError: when one is not stored.
    """
    found = {}
    for name in pictures_of(vars(record.request)):
        data = store.inputs.read(record.inputs[name]) if name in record.inputs else None
        if data is None:
            raise RecordError(f"{name} of the request is not stored here any more")
        found[name] = data
    return found


def decode_stored(inputs: Mapping[str, bytes], record: JobRecord, card: ModelCard) -> dict[str, npt.NDArray[Any]]:
    """The pixels of the pictures, (H, W, C) each, and the numbers of an array, one float32 after another.

    Raises:
        RecordError: for anything but a PNG of the job's size.
    """
    width, height = record.request.width or card.width, record.request.height or card.height
    found: dict[str, npt.NDArray[Any]] = {}
    for name, data in inputs.items():
        if name == ARRAY:
            found[name] = _numbers(name, data)
        else:
            found[name] = _decode(name, data, PictureShape(width, height, _channels(name, record, card)))
    return found


def _numbers(name: str, data: bytes) -> npt.NDArray[np.float32]:
    if len(data) % FLOAT_BYTES:
        raise RecordError(f"{name} of the request has {len(data)} bytes (allowed: multiples of {FLOAT_BYTES})")
    return np.frombuffer(data, dtype=FLOAT32)


def _channels(name: str, record: JobRecord, card: ModelCard) -> int:
    if (index := control_index(name)) is None:
        return 1 if name == "mask" else card.channels
    offered = card.control(record.request.controls[index].name)
    return offered.channels if offered is not None else card.channels


def _decode(name: str, png: bytes, shape: PictureShape) -> Pixels:
    try:
        image = Image.open(io.BytesIO(png), formats=["PNG"])
        found = (*image.size, image.mode)
        if found == (shape.width, shape.height, shape.mode):
            return np.asarray(image).reshape(shape.height, shape.width, shape.channels)
    except Exception as error:  # Pillow's decoders raise a dozen kinds of exceptions for damaged files
        raise RecordError(f"{name} of the request cannot be read: {type(error).__name__}") from error
    raise RecordError(f"{name} of the request is {found} (allowed: {(shape.width, shape.height, shape.mode)})")
