"""A ControlNet of a request, as clients send it and as the store and the workers know it.

Imports only the standard library and `jobs.request_field`, because the client shares this file with the server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Annotated, Required, TypedDict

from denoised.jobs.request_field import RequestField, fields_of

MAX_CONTROLS = 4
_PICTURE = re.compile(r"controls\.([0-9])\.image")


class ControlFields(TypedDict, total=False):
    """A ControlNet that a client asks for, with its control picture."""

    name: Required[
        Annotated[str, RequestField("one of the ControlNets in the model's card", min_length=1, max_length=100)]
    ]
    image: Required[
        Annotated[
            str | bytes | PathLike[str],
            RequestField(
                "control picture, such as edges or a pose: a PNG, JPEG or WebP in base64, or job:ID/images/K",
                min_length=1,
                max_length=12 * 1024 * 1024,
                is_picture=True,
            ),
        ]
    ]
    scale: Annotated[float | None, RequestField("strength of the ControlNet; 1 = as it was trained", ge=0, le=4)]
    start: Annotated[float | None, RequestField("fraction of the steps before which it is off", ge=0, le=1)]
    end: Annotated[float | None, RequestField("fraction of the steps after which it is off", ge=0, le=1)]
    guess_mode: Annotated[
        bool | None, RequestField("guidance leads away from a picture without it, and its scale rises with depth")
    ]
    digest: Annotated[
        str | None,
        RequestField(
            "digest of the ControlNet; different weights under that name are refused", min_length=1, max_length=64
        ),
    ]


@dataclass(frozen=True)
class Control:
    """A ControlNet of a request.

    Attributes:
        name: In the model's card.
        image: The file of its control picture, as `sha256:` and its digest.
        scale: Its strength; 1 = as it was trained.
        start, end: Between which fractions of the steps it applies.
        guess_mode: See `ControlFields`.
        digest: Of its config and weights.
    """

    name: str
    image: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False
    digest: str = ""


CONTROL_FIELDS: Mapping[str, RequestField] = fields_of(ControlFields)
"""Every field of a ControlNet in a request by name."""


def control_picture(index: int) -> str:
    """What the picture of a request's ControlNet is called among the pictures of the request."""
    return f"controls.{index}.image"


def control_index(name: str) -> int | None:
    """The inverse of `control_picture`; None for any other name."""
    match = _PICTURE.fullmatch(name)
    return int(match[1]) if match else None
