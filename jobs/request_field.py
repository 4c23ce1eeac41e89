"""What the definition of a request says about a field, and how it is read from a `TypedDict`.

Imports the standard library alone, because the client shares this file with the server.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Required, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class RequestField:
    """What a field of the request means and which values it takes.

    Attributes:
        meaning: One phrase, for help texts and for the OpenAPI schema.
        title: The field's label on the page; the name itself if empty.
        ge, le: The smallest and the largest number. Limits that depend on the model are checked by
            `app.admission.validation`.
        min_length, max_length: Of a text, in characters; of a list, in items.
        of_model: The default is the one in the model's card, not one that `SamplingRequest` has.
        default_with: The field whose choice it belongs to. If a request leaves that field out, a default in the card
            applies; if a request names it, the card's default does not, and None stays None.
        input: Only models whose card lists the field under `inputs` take it.
        is_picture: The text is a file in base64, or names a picture.
        samplers: The card's list of those samplers that take the field; empty if all do, which a list of None also
            says.
        flag: The option of `denoised generate`; `--name` if empty.
        meanings: What each of the choices means, in their order; a phrase each.
        name, type: Filled in by `fields_of`. `type` leaves out None, which every field takes as "the default".
    """

    meaning: str
    title: str = ""
    ge: float | None = None
    le: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    of_model: bool = False
    default_with: str = ""
    input: bool = False
    is_picture: bool = False
    samplers: str = ""
    flag: str = ""
    meanings: Mapping[str, str] = field(default_factory=dict, hash=False)
    name: str = ""
    type: Any = None

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a `Literal`; empty for every other type."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def is_numbers(self) -> bool:
        """Whether the value is a list of numbers."""
        return bool(self.type == list[float])

    def allows(self, value: object) -> bool:
        """Whether a value is one of the choices, or a number within the limits, as far as the field has any."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (self.ge is None or value >= self.ge) and (self.le is None or value <= self.le)

    @property
    def limits(self) -> str:
        """The allowed values in words: "0 … 1", "1 or more", "png, webp or jpeg"; empty if there is no limit."""
        if self.choices:
            return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
        if self.is_numbers:
            return (
                f"{self.max_length} numbers"
                if self.min_length == self.max_length
                else f"up to {self.max_length} numbers"
            )
        if get_origin(self.type) is list:
            return f"up to {self.max_length}"
        if self.ge is None:
            return ""
        return f"{self.ge:g} or more" if self.le is None else f"{self.ge} … {self.le}"


def fields_of(definition: Any) -> dict[str, RequestField]:
    """The fields of a TypedDict such as `RequestFields` by name, in its order."""
    hints = get_type_hints(definition, include_extras=True)
    return {name: _named(name, *get_args(_annotated(hint))) for name, hint in hints.items()}


def _annotated(hint: Any) -> Any:
    """The `Annotated` inside `Required`, which `get_type_hints` keeps."""
    return get_args(hint)[0] if get_origin(hint) is Required else hint


def _named(name: str, hint: Any, field: RequestField) -> RequestField:
    kinds = [kind for kind in get_args(hint) if kind is not types.NoneType] if _is_union(hint) else [hint]
    if field.is_picture:
        kinds = [str]
    return replace(field, name=name, type=kinds[0] if len(kinds) == 1 else Union[tuple(kinds)])  # noqa: UP007


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)
