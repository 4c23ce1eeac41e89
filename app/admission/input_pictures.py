"""The pictures that a request starts from: where they come from, and what the store keeps of them.

A picture is given as base64 (a data URL, too), as `job:ID/images/K`, which is a picture of one of the caller's own
jobs, or as `sha256:DIGEST`, which is one that the caller has given before and that is still stored. A URL is never
fetched.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from denoised.app.http.errors import InvalidRequest, NotFound, TooBusy
from denoised.app.http.validation_errors import format_value
from denoised.app.job_access.lookup import find_job
from denoised.app.services import Services
from denoised.jobs.array_reading import ArrayShape, read_array
from denoised.jobs.control import control_index
from denoised.jobs.errors import ArrayError, PictureError
from denoised.jobs.picture_reading import NAMES, PictureShape, read_picture
from denoised.jobs.record import RequestWarning
from denoised.jobs.request import RequestFields
from denoised.jobs.request_limits import PICTURE_DIGEST
from denoised.jobs.request_pictures import pictures_of, with_pictures
from denoised.jobs.sampling_request import SamplingRequest
from denoised.jobs.store.input_pictures import input_key
from denoised.jobs.task_request import ARRAY
from denoised.model.serving.card import ModelCard

DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,", re.ASCII)
JOB_PICTURE = re.compile(r"job:([0-9a-zA-Z]{1,64})/images/([0-9]{1,4})", re.ASCII)
URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{1,15}://")
RETRY_AFTER = 60  # seconds; pictures expire one by one
SOURCES = f"{NAMES} in base64, or job:ID/images/K"


@dataclass(frozen=True)
class GivenPicture:
    """A picture of a request.

    Attributes:
        digest: Of the file, `sha256:` before it.
        data: The file; None if it is to be found in the store.
    """

    digest: str
    data: bytes | None

    @classmethod
    def of(cls, data: bytes) -> GivenPicture:
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}", data)


@dataclass(frozen=True)
class RequestPictures:
    """The pictures of an accepted request.

    Attributes:
        keys: In the store, by the names of `jobs.request_pictures.pictures_of`.
        pictures: PNGs by key.
        warnings: What was changed to fit the model.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    warnings: tuple[RequestWarning, ...] = ()


def find_pictures(services: Services, fields: RequestFields, owner: str) -> dict[str, GivenPicture]:
    """The pictures of a request, by the names of `jobs.request_pictures.pictures_of`. Blocking.

    Raises:
        InvalidRequest: naming the field, for a text that is neither a file in base64 nor the name of a picture.
    """
    texts = {name: str(text) for name, text in pictures_of(fields).items()}
    found = {}
    for name, text in texts.items():
        try:
            found[name] = _find(services, text, owner)
        except PictureError as error:
            raise InvalidRequest([(name, f"{format_value(text)}: {error}")]) from error
    return found


def with_digests(fields: RequestFields, given: Mapping[str, GivenPicture]) -> RequestFields:
    """The request with the digest of each picture in its place."""
    return cast(RequestFields, with_pictures(fields, {name: picture.digest for name, picture in given.items()}))


def with_given_files(fields: RequestFields, files: Mapping[str, bytes]) -> RequestFields:
    """The request of a picture with the files that it was made from in the place of their digests.

    Raises:
        InvalidRequest: naming a file that is another one, or that the picture was not made from.
    """
    errors, pictures = [], pictures_of(fields)
    for name, data in files.items():
        named, digest = pictures.get(name), GivenPicture.of(data).digest
        if named is None:
            errors.append((name, f"was given, but the picture was made without {name}"))
        elif named != digest:
            errors.append((name, f"the file has {digest}, but the picture was made from {named}"))
    if errors:
        raise InvalidRequest(errors)
    return cast(
        RequestFields, with_pictures(fields, {name: base64.b64encode(data).decode() for name, data in files.items()})
    )


def read_inputs(
    services: Services, given: Mapping[str, GivenPicture], request: SamplingRequest, card: ModelCard, owner: str
) -> RequestPictures:
    """Read the pictures as the model takes them. Blocking, and slow.

    Raises:
        InvalidRequest: naming the field, for a file that cannot be used, or a picture that is no longer stored.
        Unavailable: when too many pictures are being read.
    """
    width, height = request.width or card.width, request.height or card.height
    keys, pictures, warnings = {}, {}, []
    for name, picture in given.items():
        shape = _shape(name, width, height, request, card)
        key = input_key(owner, picture.digest, shape)
        try:
            png, changes = _read(services, picture, key, shape)
        except (PictureError, ArrayError) as error:
            raise InvalidRequest([(name, str(error))]) from error
        keys[name], pictures[key] = key, png
        if changes:
            warnings.append(RequestWarning(name, changes))
    return RequestPictures(keys, pictures, tuple(warnings))


def _shape(name: str, width: int, height: int, request: SamplingRequest, card: ModelCard) -> PictureShape | ArrayShape:
    """What the model takes for an input of a request. width, height: of the request in pixels."""
    if name != ARRAY:
        return PictureShape(width, height, _channels(name, request, card))
    if card.latent is None:
        return ArrayShape(card.channels, height, width)
    return ArrayShape(card.latent.channels, height // card.latent.downscale, width // card.latent.downscale)


def _channels(name: str, request: SamplingRequest, card: ModelCard) -> int:
    """Channels of a picture of the request as the model takes it."""
    if (index := control_index(name)) is None:
        return 1 if name == "mask" else card.channels
    offered = card.control(request.controls[index].name)
    assert offered is not None
    return offered.channels


def count_inputs(services: Services, owner: str, inputs: RequestPictures) -> None:
    """Count the pictures of a job that is about to be accepted. Blocking.

    Raises:
        TooBusy: when the API key would have more bytes of pictures stored than it may.
    """
    limit = services.settings.max_input_bytes_per_key
    if not services.settings.api_keys or not inputs.pictures:
        return
    sizes = {key: len(png) for key, png in inputs.pictures.items()}
    stored = services.store.inputs.quota.add(owner, sizes, limit)
    if not stored.fit:
        services.admission.refused["input_bytes_per_key"] += 1
        text = f"this key has {stored.bytes} bytes of pictures stored, and this job has {sum(sizes.values())}"
        left = max(0, limit - stored.bytes)
        raise TooBusy(f"{text} (allowed together: {limit}; left: {left}). They expire with their jobs", RETRY_AFTER)


def _find(services: Services, text: str, owner: str) -> GivenPicture:
    if PICTURE_DIGEST.fullmatch(text):
        return GivenPicture(text, None)
    if match := JOB_PICTURE.fullmatch(text):
        return GivenPicture.of(_job_picture(services, match[1], int(match[2]), owner))
    if URL.match(text):
        raise PictureError(f"URLs are not fetched (allowed: {SOURCES})")
    if prefix := DATA_URL.match(text):
        text = text[prefix.end() :]
    try:
        return GivenPicture.of(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"it is not base64 ({error}; allowed: {SOURCES})") from error


def _job_picture(services: Services, job_id: str, index: int, owner: str) -> bytes:
    try:
        record = find_job(services, job_id, owner)
    except NotFound as error:
        raise PictureError(error.detail) from error
    data = services.store.image(record.id, index)
    if data is None:
        raise PictureError(f"job {record.id} ({record.status}) has no image {index}")
    return data


def _read(services: Services, picture: GivenPicture, key: str, shape: PictureShape | ArrayShape) -> tuple[bytes, str]:
    """The picture as a PNG of a shape, and what was done for that; or the numbers of an array."""
    if picture.data is None:
        stored = services.store.inputs.read(key)
        if stored is None:
            raise PictureError(f"the file with {picture.digest} is not stored here any more; send it along")
        return stored, ""
    with services.picture_slots.open():
        if isinstance(shape, ArrayShape):
            return read_array(picture.data, shape), ""
        found = read_picture(picture.data, shape)
    return found.png, found.changes
