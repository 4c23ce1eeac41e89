"""`Resource`: a JSON object of the HTTP API as a frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from denoised.client.errors import InvalidResponse

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Resource:
    """An object of the server, with the members that the HTTP contract promises.

    raw: the JSON object as received, including members that a newer server adds.
    """

    raw: Raw = field(repr=False, compare=False, kw_only=True)

    @classmethod
    def from_json(cls, raw: Any) -> Self:
        """Read a JSON object.

        Raises:
            InvalidResponse: if a promised member is missing or has the wrong type.
        """
        try:
            return cls(**cls._members(raw), raw=raw)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            message = f"the server's answer is not a valid {cls.__name__} ({error}): is it denoised?"
            raise InvalidResponse(message) from error

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        """Constructor arguments; subclasses convert nested objects."""
        return {known.name: raw[known.name] for known in fields(cls) if known.name in raw and known.name != "raw"}
