"""The body of `POST /generate`, derived from the fields that `jobs.request` defines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, TypeVar, cast, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictInt,
    StrictStr,
    create_model,
    field_validator,
    model_validator,
)

from denoised.app.http.errors import InvalidRequest
from denoised.app.http.validation_errors import MAX_ERRORS, describe_unknown_fields
from denoised.jobs.control import CONTROL_FIELDS, ControlFields
from denoised.jobs.lora import LORA_FIELDS, LoraFields
from denoised.jobs.request import FIELDS, RequestFields
from denoised.jobs.request_field import RequestField
from denoised.jobs.sampling_request import DEFAULTS

M = TypeVar("M", bound=BaseModel)

PLAIN = (str, int, float, bool)
LevelNumber = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
EXAMPLES: list[JsonValue] = [
    {"label": "sneaker", "seed": 7},
    {"label": "ankle boot", "n": 4, "steps": 50, "guidance_scale": 3.0, "preview_every": 5, "preview": "both"},
    {"label": None, "sampler": "ddpm", "steps": 200, "format": "webp"},
]


def with_fields(fields: Mapping[str, RequestField], required: Collection[str] = ()) -> Callable[[type[M]], type[M]]:
    """A class decorator that adds request fields to a model; null stands for the default of each.

    required: fields that take a text and have no default.
    """

    def extended(model: type[M]) -> type[M]:
        members: dict[str, Any] = {
            name: (StrictStr, _required_text(field)) if name in required else (_annotation(field), body_field(field))
            for name, field in fields.items()
        }
        return create_model(
            model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **members
        )

    return extended


def body_field(field: RequestField) -> Any:
    """A request field for pydantic: strict (a number is never a string or a boolean), and null if left out.

    The JSON Schema also carries what the page's form needs: `x-of-model`, `x-default-with`, `x-input`,
    `x-picture`, `x-samplers` and `x-meanings` as `RequestField` explains them.
    """
    notes = {
        "x-of-model": field.of_model,
        "x-default-with": field.default_with,
        "x-input": field.input,
        "x-picture": field.is_picture,
        "x-samplers": field.samplers,
        "x-meanings": dict(field.meanings),
    }
    shown: dict[str, Any] = {name: note for name, note in notes.items() if note}
    if DEFAULTS.get(field.name) not in (None, ()):
        shown["default"] = DEFAULTS[field.name]
    limited = field.type in PLAIN  # the parts of a union have limits of their own
    sized = limited or get_origin(field.type) is list
    return Field(
        default=None,
        title=field.title or field.name.replace("_", " ").capitalize(),
        description=field.meaning,
        strict=True if limited else None,
        ge=field.ge,
        le=field.le,
        min_length=field.min_length if sized else None,
        max_length=field.max_length if sized else None,
        allow_inf_nan=False if field.type is float else None,
        json_schema_extra=shown,
    )


def _required_text(field: RequestField) -> Any:
    return Field(description=field.meaning, min_length=field.min_length, max_length=field.max_length)


def _annotation(field: RequestField) -> Any:
    if field.is_numbers:
        return list[LevelNumber] | None
    if field.type == list[LoraFields]:
        return list[LoraBody] | None
    if field.type == list[ControlFields]:
        return list[ControlBody] | None
    return (StrictStr | StrictInt if field.type == str | int else field.type) | None


class StrictBody(BaseModel):
    """A JSON object without unknown fields."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_many_unknown_fields(cls, value: object) -> object:
        """Refuse them before pydantic makes an error object of each: 600,000 took 33 s and 970 MiB.

        Raises:
            InvalidRequest: for more unknown fields than one response lists.
        """
        if isinstance(value, dict):
            unknown = value.keys() - cls.model_fields.keys()
            if len(unknown) > MAX_ERRORS:
                raise InvalidRequest(describe_unknown_fields(value, unknown, list(cls.model_fields)))
        return value


@with_fields(LORA_FIELDS, required=["name"])
class LoraBody(StrictBody):
    """A low-rank adapter of the request."""


@with_fields(CONTROL_FIELDS, required=["name", "image"])
class ControlBody(StrictBody):
    """A ControlNet of the request, with its control picture."""


@with_fields(FIELDS)
class GenerateRequest(StrictBody):
    """`POST /generate`. A field that is left out, or null, takes its default: the one named here, or the model's."""

    model_config = ConfigDict(json_schema_extra={"examples": EXAMPLES})

    def fields(self) -> RequestFields:
        """The request fields that were given a value."""
        return cast(RequestFields, self.model_dump(include=set(FIELDS), exclude_none=True))

    @field_validator("label", mode="before", check_fields=False)
    @classmethod
    def _check_label(cls, value: object) -> object:
        return check_label(value)


def check_label(value: object) -> object:
    """The value of a label.

    Raises:
        ValueError: for anything but a text that is not too long, a whole number or null.
    """
    longest = FIELDS["label"].max_length
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise ValueError("should be a class name, a class index or null")
    if isinstance(value, str) and longest is not None and len(value) > longest:
        raise ValueError(f"a class name has at most {longest} characters, not {len(value)}")
    return value
