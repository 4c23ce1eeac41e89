"""The pictures that a job starts from, read from the store.

The front end has written them as PNGs of the model's size (`jobs.picture_reading`). Other programs may write to Redis,
too, so the size is checked before anything is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from denoised.jobs.errors import RecordError
from denoised.jobs.picture_reading import PictureShape
from denoised.jobs.record import JobRecord
from denoised.jobs.request import PICTURE_FIELDS
from denoised.jobs.store.store import Store
from denoised.model.serving.card import ModelCard
from denoised.worker.delivery.pictures.encoding import Pixels


def read_stored_pictures(store: Store, record: JobRecord) -> dict[str, bytes]:
    """The PNGs of a job's pictures, by request field.

    Raises:
        RecordError: when one is not stored.
    """
    found = {}
    for name in PICTURE_FIELDS:
        if getattr(record.request, name) is None:
            continue
        data = store.inputs.read(record.inputs[name]) if name in record.inputs else None
        if data is None:
            raise RecordError(f"{name} of the request is not stored here any more")
        found[name] = data
    return found


def decode_stored(pngs: Mapping[str, bytes], record: JobRecord, card: ModelCard) -> dict[str, Pixels]:
    """The pixels of the pictures, (H, W, C) each.

    Raises:
        RecordError: for anything but a PNG of the job's size.
    """
    width, height = record.request.width or card.width, record.request.height or card.height
    shapes = {name: PictureShape(width, height, 1 if name == "mask" else card.channels) for name in pngs}
    return {name: _decode(name, pngs[name], shape) for name, shape in shapes.items()}


def _decode(name: str, png: bytes, shape: PictureShape) -> Pixels:
    try:
        image = Image.open(io.BytesIO(png), formats=["PNG"])
        found = (*image.size, image.mode)
        if found == (shape.width, shape.height, shape.mode):
            return np.asarray(image).reshape(shape.height, shape.width, shape.channels)
    except Exception as error:  # Pillow's decoders raise a dozen kinds of exceptions for damaged files
        raise RecordError(f"{name} of the request cannot be read: {type(error).__name__}") from error
    raise RecordError(f"{name} of the request is {found} (allowed: {(shape.width, shape.height, shape.mode)})")
