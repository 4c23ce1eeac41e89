"""The request that a PNG carries, read from a file that comes from anywhere.

Only one text chunk of limited length is decompressed, and no pixels.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StrictInt, StrictStr, ValidationError

from denoised.app.http.errors import InvalidRequest, UnsupportedMedia
from denoised.app.http.requests.json_body import decode_json
from denoised.app.http.requests.request_body import GenerateRequest
from denoised.app.http.validation_errors import describe_validation_errors
from denoised.jobs.request import MAX_SEED
from denoised.jobs.task_request import PICTURE_TASKS

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEYWORD = b"parameters\0"
MAX_TEXT_BYTES = 65_536  # the parameters that workers write have some hundreds


class PictureParameters(GenerateRequest):
    """A request for one PNG with a given seed, and the numerics that it was made under.

    Pictures made by older versions carry every field, newer ones only what differs from the defaults.
    """

    model: Annotated[StrictStr, Field(min_length=1, max_length=200)]
    seed: Annotated[StrictInt, Field(ge=0, le=MAX_SEED)]
    n: Annotated[StrictInt, Field(ge=1, le=1)] = 1
    format: Literal["png"] = "png"
    preview_every: Annotated[StrictInt, Field(ge=0, le=0)] = 0
    webhook: None = None  # whoever made the file does not choose who hears of its verification
    numerics: Annotated[StrictStr, Field(max_length=200, pattern="^[!-~]+$")]


def read_parameters(data: bytes) -> PictureParameters:
    """The request in the iTXt chunk `parameters` of a PNG (ISO 15948, 11.3.4.5).

    Raises:
        UnsupportedMedia: when the file is not a PNG.
        InvalidRequest: when the PNG is truncated, when it does not carry exactly one chunk of parameters, or when
            they are not a valid request.
    """
    if not data.startswith(SIGNATURE):
        raise UnsupportedMedia("the body is not a PNG; only PNGs carry the request that made them")
    found = [content for kind, content in _chunks(data) if kind == b"iTXt" and content.startswith(KEYWORD)]
    if len(found) != 1:
        count = len(found) or "no"
        raise _wrong(f"the PNG carries {count} iTXt chunks of that name (allowed: 1, as /generate writes it)")
    text = _text(found[0])
    try:
        with contextlib.suppress(ValueError, RecursionError):  # pydantic names these errors
            _check_task(decode_json(text))
        return PictureParameters.model_validate_json(text)
    except InvalidRequest as error:
        raise InvalidRequest([(_field(each["field"]), each["message"]) for each in error.extra["errors"]]) from error
    except ValidationError as error:
        problems = describe_validation_errors(error.errors(), PictureParameters.model_fields)
        raise InvalidRequest([(_field(field), message) for field, message in problems]) from error


def _check_task(parameters: object) -> None:
    """Refuse the picture of another task than making images, whose request `POST /generate` does not take."""
    task = parameters.get("task") if isinstance(parameters, dict) else None
    if task in PICTURE_TASKS:
        raise InvalidRequest([("task", f"the picture comes from POST /{task} (allowed: one from POST /generate)")])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each chunk up to IEND (ISO 15948, 5.3).

    Raises:
        InvalidRequest: when the file ends before IEND, or an iTXt chunk has a wrong checksum.
    """
    at, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        if len(data) < at + 12:
            raise _truncated(data)
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if len(data) < end + 4:
            raise _truncated(data)
        if kind == b"iTXt" and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise InvalidRequest(
                [("body", f"the PNG is damaged: the checksum of its iTXt chunk at byte {at} is wrong")]
            )
        yield kind, data[at + 8 : end]
        at = end + 4


def _text(content: bytes) -> bytes:
    """The text of an iTXt chunk: keyword, compression flag, method, language tag, translated keyword, text."""
    compressed = content[len(KEYWORD) : len(KEYWORD) + 1] != b"\0"
    _, _, text = content[len(KEYWORD) + 2 :].partition(b"\0")[2].partition(b"\0")
    if compressed:
        try:
            text = zlib.decompressobj().decompress(text, MAX_TEXT_BYTES + 1)
        except zlib.error as error:
            raise _wrong("the PNG's text cannot be decompressed") from error
    if len(text) > MAX_TEXT_BYTES:
        raise _wrong(f"the PNG's text is longer than allowed ({MAX_TEXT_BYTES} bytes)")
    return text


def _field(field: str) -> str:
    return "parameters" if field == "body" else f"parameters.{field}"


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest([("parameters", message)])


def _truncated(data: bytes) -> InvalidRequest:
    return InvalidRequest([("body", f"the PNG is truncated: it has {len(data)} bytes and no IEND chunk")])
