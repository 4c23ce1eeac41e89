"""A low-rank adapter (LoRA) of a request, as clients send it and as the store and the workers know it.

Imports only the standard library and `jobs.request_field`, because the client shares this file with the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Required, TypedDict

from denoised.jobs.request_field import RequestField, fields_of

MAX_LORAS = 4  # of a request


class LoraFields(TypedDict, total=False):
    """An adapter that a client asks for."""

    name: Required[
        Annotated[str, RequestField("one of the adapters in the model's card", min_length=1, max_length=100)]
    ]
    weight: Annotated[float | None, RequestField("strength of the adapter; 1 = as it was trained", ge=-4, le=4)]
    digest: Annotated[
        str | None,
        RequestField(
            "digest of the adapter's file; a different file with that name is refused", min_length=1, max_length=64
        ),
    ]


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter of a request.

    Attributes:
        name: In the model's card.
        weight: Its strength; 1 = as it was trained.
        digest: Of its file.
    """

    name: str
    weight: float = 1.0
    digest: str = ""


LORA_FIELDS: Mapping[str, RequestField] = fields_of(LoraFields)
"""Every field of an adapter in a request by name."""
