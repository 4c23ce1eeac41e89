"""The pictures that a request starts from, as the server takes them."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from denoised.client.errors import ServiceError
from denoised.jobs.request import PictureSource
from denoised.jobs.request_pictures import pictures_of, with_pictures


def encode_picture_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request with each file of a picture in base64.

    Raises:
        ServiceError: when a file cannot be read.
    """
    pictures = {name: source for name, source in pictures_of(fields).items() if isinstance(source, bytes | os.PathLike)}
    return with_pictures(fields, {name: base64.b64encode(read(source)).decode() for name, source in pictures.items()})


def read(source: PictureSource) -> bytes:
    """The bytes of a picture. source: its bytes, or the path of its file.

    Raises:
        ServiceError: when the file cannot be read.
    """
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise ServiceError(f"{os.fspath(source)!r} cannot be read ({error.strerror})") from error


def form_of(parts: Mapping[str, bytes]) -> tuple[bytes, str]:
    """A form with a file for each part, and its Content-Type (RFC 7578)."""
    files = {name: (name, data, "application/octet-stream") for name, data in parts.items()}
    request = httpx.Request("POST", "http://form", files=files)
    return request.read(), request.headers["Content-Type"]
