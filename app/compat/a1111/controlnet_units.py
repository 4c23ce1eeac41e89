"""The units of the ControlNet extension of AUTOMATIC1111's web UI, `alwayson_scripts.ControlNet.args`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, StrictBool, StrictInt, StrictStr, ValidationError

from denoised.app.compat.a1111.refusals import Errors, plain_name
from denoised.app.http.errors import InvalidRequest
from denoised.app.http.requests.request_body import StrictBody, body_field
from denoised.app.http.validation_errors import describe_validation_errors, format_value, join_names
from denoised.jobs.control import CONTROL_FIELDS, ControlFields
from denoised.jobs.request import MAX_PICTURE_TEXT
from denoised.model.serving.card import CardControl, ModelCard

SCRIPTS = "alwayson_scripts"
SCRIPT = "controlnet"  # the web UI compares names of scripts without regard to case
HASH_DIGITS = 8
NONE = "none"
BALANCED, PROMPT_FIRST, CONTROL_FIRST = MODES = (
    "Balanced",
    "My prompt is more important",
    "ControlNet is more important",
)
# Fields of a unit that turn something on, what that is, and their values without effect besides null, false and "".
UNSERVED: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "module": ("a preprocessor", (NONE,)),
    "mask": ("a mask of a ControlNet", ()),
    "mask_image": ("a mask of a ControlNet", ()),
    "effective_region_mask": ("a mask of a ControlNet", ()),
    "advanced_weighting": ("a weight of each residual", ()),
    "control_mode": ("weighting by depth on both sides of guidance", (BALANCED, CONTROL_FIRST)),
}
# Our names of a ControlNet's fields, and the extension's.
MEMBERS = {"name": "model", "scale": "weight", "start": "guidance_start", "end": "guidance_end"}

_Picture = Annotated[StrictStr | None, Field(max_length=MAX_PICTURE_TEXT)]


class ControlNetUnit(StrictBody):
    """A unit that is enabled. The fields from `resize_mode` on have no effect without a preprocessor and hires fix."""

    enabled: StrictBool = True
    model: Annotated[StrictStr, Field(min_length=1, max_length=200)]
    image: _Picture = None
    input_image: _Picture = None
    weight: Annotated[float | None, body_field(CONTROL_FIELDS["scale"])] = None
    guidance_start: Annotated[float | None, body_field(CONTROL_FIELDS["start"])] = None
    guidance_end: Annotated[float | None, body_field(CONTROL_FIELDS["end"])] = None
    control_mode: Literal[0, 1, 2] | StrictStr | None = None
    module: StrictStr | None = None
    mask: JsonValue = None
    mask_image: JsonValue = None
    effective_region_mask: JsonValue = None
    advanced_weighting: JsonValue = None
    resize_mode: StrictInt | StrictStr | None = None
    low_vram: JsonValue = None
    lowvram: JsonValue = None
    processor_res: JsonValue = None
    threshold_a: JsonValue = None
    threshold_b: JsonValue = None
    pixel_perfect: JsonValue = None
    hr_option: JsonValue = None
    save_detected_map: JsonValue = None

    @property
    def mode(self) -> str:
        """The control mode by its name."""
        return MODES[self.control_mode] if isinstance(self.control_mode, int) else self.control_mode or BALANCED


@dataclass(frozen=True)
class ControlNetUnits:
    """What a request's units ask for.

    Attributes:
        controls: Of the units that are enabled, in order.
        errors: (field, message) of each unit that cannot be served.
    """

    controls: list[ControlFields]
    errors: list[tuple[str, str]]


def read_units(scripts: Mapping[str, Any], card: ModelCard, picture: str | None) -> ControlNetUnits:
    """Read the units that are enabled.

    scripts: `alwayson_scripts`. picture: the control picture of a unit without one, which is what `img2img` starts
    from; None if it must have one.
    """
    enabled = list(_enabled(scripts))
    if enabled and not card.controls:
        return ControlNetUnits([], [(SCRIPTS, f"names a ControlNet, but {card.name} offers none")])
    controls: list[ControlFields] = []
    errors: list[tuple[str, str]] = []
    for path, given in enabled:
        try:
            unit = ControlNetUnit.model_validate(given)
        except ValidationError as error:
            found = describe_validation_errors(error.errors(), list(ControlNetUnit.model_fields))
            errors += [(f"{path}.{field}" if field != "body" else path, message) for field, message in found]
        except InvalidRequest as error:  # of many unknown fields
            errors += [(f"{path}.{each['field']}", each["message"]) for each in error.extra["errors"]]
        else:
            errors += [(f"{path}.{field}", message) for field, message in _errors(unit, card, picture)]
            controls.append(_control(unit, card, picture))
    return ControlNetUnits(controls, errors)


def unit_field(field: str, scripts: Mapping[str, Any]) -> str:
    """The extension's name of one of our fields, `controls` and what is in it."""
    _, _, rest = field.partition(".")
    index, _, member = rest.partition(".")
    paths = [path for path, _ in _enabled(scripts)]
    if not index.isdecimal() or int(index) >= len(paths):
        return SCRIPTS
    return f"{paths[int(index)]}.{MEMBERS.get(member, member)}"


def listed_name(control: CardControl) -> str:
    """A ControlNet as the extension lists it: its name, and the beginning of its digest."""
    return f"{control.name} [{control.digest[:HASH_DIGITS]}]"


def without_pictures(scripts: Mapping[str, Any]) -> dict[str, Any]:
    """`alwayson_scripts` with null for every picture of a unit, for the response."""
    return {name: _pictures_removed(options) if is_script(name) else options for name, options in scripts.items()}


def _pictures_removed(options: Any) -> Any:
    if isinstance(options, list):
        return [_pictures_removed(each) for each in options]
    if not isinstance(options, dict):
        return options
    pictures = ("image", "input_image", "mask", "mask_image")
    return {name: None if name in pictures else _pictures_removed(value) for name, value in options.items()}


def is_script(name: str) -> bool:
    """Whether a script of `alwayson_scripts` is the ControlNet extension."""
    return name.lower() == SCRIPT


def _enabled(scripts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The units that are switched on, each with its path in the request."""
    for name, options in scripts.items():
        units = options.get("args") if isinstance(options, dict) else options
        if not is_script(name) or not units:
            continue
        for k, unit in enumerate(units if isinstance(units, list) else [units]):
            if unit and not (isinstance(unit, dict) and unit.get("enabled") is False):
                yield f"{SCRIPTS}.{plain_name(name)}.args.{k}", unit


def _errors(unit: ControlNetUnit, card: ModelCard, picture: str | None) -> Errors:
    if _named(unit, card) is None:
        offered = join_names([listed_name(each) for each in card.controls])
        yield "model", f"{format_value(unit.model)} is not offered by {card.name} (offered: {offered})"
    if not (unit.image or unit.input_image or picture):
        yield "image", "is missing (allowed: a PNG, JPEG or WebP in base64)"
    given = {**unit.model_dump(include=set(UNSERVED)), "control_mode": unit.mode}
    for name, (what, neutral) in UNSERVED.items():
        value = given[name]
        if value and (value.lower() if name == "module" else value) not in neutral:
            allowed = ", ".join(str(each) for each in neutral) or "null"
            yield name, f"{format_value(value)} was given, but {what} is not served (allowed: {allowed})"


def _named(unit: ControlNetUnit, card: ModelCard) -> CardControl | None:
    """The ControlNet that a unit names, with or without the beginning of its digest, in any case."""
    name = unit.model.lower()
    return next((each for each in card.controls if name in (each.name.lower(), listed_name(each).lower())), None)


def _control(unit: ControlNetUnit, card: ModelCard, picture: str | None) -> ControlFields:
    named = _named(unit, card)
    return {
        "name": named.name if named is not None else unit.model,
        "image": unit.image or unit.input_image or picture or "",
        "scale": unit.weight,
        "start": unit.guidance_start,
        "end": unit.guidance_end,
        "guess_mode": unit.mode == CONTROL_FIRST,
    }
