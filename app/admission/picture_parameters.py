"""The request that a PNG carries, read from bytes that anybody may have written.

One text of bounded length is unpacked, and no pixel.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StrictInt, StrictStr, ValidationError

from denoised.app.http.errors import InvalidRequest, UnsupportedMedia
from denoised.app.http.schemas import MAX_SEED, GenerateRequest
from denoised.app.http.validation_errors import describe_validation_errors

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEYWORD = b"parameters\0"
LONGEST = 65_536  # bytes of parameters; those written here have some hundreds


class PictureParameters(GenerateRequest):
    """A request for one PNG that leaves no seed to be drawn, and the numerics it was made under."""

    model: Annotated[StrictStr, Field(min_length=1, max_length=200)]
    seed: Annotated[StrictInt, Field(ge=0, le=MAX_SEED)]
    n: Annotated[StrictInt, Field(ge=1, le=1)] = 1
    format: Literal["png"] = "png"
    preview_every: Annotated[StrictInt, Field(ge=0, le=0)] = 0
    numerics: Annotated[StrictStr, Field(max_length=200, pattern="^[!-~]+$")]


def read_parameters(data: bytes) -> PictureParameters:
    """The request in the iTXt `parameters` of a PNG (ISO 15948, 11.3.4.5).

    Raises:
        UnsupportedMedia: for what is no PNG.
        InvalidRequest: for a PNG that is cut short, carries no parameters or several, or none that are a request.
    """
    if not data.startswith(SIGNATURE):
        raise UnsupportedMedia("the body is no PNG; only PNGs carry the request that makes them again")
    found = [content for kind, content in _chunks(data) if kind == b"iTXt" and content.startswith(KEYWORD)]
    if len(found) != 1:
        raise _wrong(f"the PNG carries {len(found) or 'no'} iTXt of that name (allowed: 1, as written by /generate)")
    try:
        return PictureParameters.model_validate_json(_text(found[0]))
    except ValidationError as error:
        problems = describe_validation_errors(error.errors(), PictureParameters.model_fields)
        raise InvalidRequest([(_field(field), message) for field, message in problems]) from error


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk up to IEND (ISO 15948, 5.3); text with a wrong checksum is refused."""
    at, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        if len(data) < at + 12:
            raise _cut_short(data)
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if len(data) < end + 4:
            raise _cut_short(data)
        if kind == b"iTXt" and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise InvalidRequest([("body", f"the PNG is damaged: its iTXt at byte {at} has another checksum")])
        yield kind, data[at + 8 : end]
        at = end + 4


def _text(content: bytes) -> bytes:
    """The text of an iTXt: keyword, packed or not, method, language, translated keyword, text."""
    packed = content[len(KEYWORD) : len(KEYWORD) + 1] != b"\0"
    _, _, text = content[len(KEYWORD) + 2 :].partition(b"\0")[2].partition(b"\0")
    if packed:
        try:
            text = zlib.decompressobj().decompress(text, LONGEST + 1)
        except zlib.error as error:
            raise _wrong("the PNG's text cannot be unpacked") from error
    if len(text) > LONGEST:
        raise _wrong(f"the PNG's text is longer than allowed ({LONGEST} bytes)")
    return text


def _field(field: str) -> str:
    return "parameters" if field == "body" else f"parameters.{field}"


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest([("parameters", message)])


def _cut_short(data: bytes) -> InvalidRequest:
    return InvalidRequest([("body", f"the PNG is cut short: it has {len(data)} bytes and no IEND")])
