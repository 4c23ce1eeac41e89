"""The limits of a stored request: those of its fields, and upper bounds that hold for every model.

Anyone who may write to Redis can queue a request that no front end has checked. It must not cost a process more memory
or time than one that was checked. The limits of one model are checked by `app.admission.validation` and, on what comes
out of the queue, by `worker.delivery.request_check`.
"""

from __future__ import annotations

import re
from dataclasses import fields

from denoised.jobs.control import CONTROL_FIELDS, MAX_CONTROLS
from denoised.jobs.errors import RecordError
from denoised.jobs.lora import LORA_FIELDS, MAX_LORAS
from denoised.jobs.request import FIELDS, MAX_SEED, MAX_SIGMA
from denoised.jobs.request_field import RequestField
from denoised.jobs.request_pictures import PICTURE_FIELDS
from denoised.jobs.sampling_request import SamplingRequest
from denoised.jobs.task_request import ARRAY

# Upper bounds for every model, where a field has none of its own.
UPPER: dict[str, float] = {
    "n": 1024,
    "steps": 100_000,
    "stages": 16,
    "extra_evaluations": 16,
    "preview_every": 100_000,
    "label": 10_000_000,
    "width": 16_384,
    "height": 16_384,
    "sigma_min": MAX_SIGMA,
    "sigma_max": MAX_SIGMA,
    "sigmas": MAX_SIGMA,
    "guidance_interval": MAX_SIGMA,
    "clip_skip": 1000,
    "image_guidance_scale": 100,
    "guided_evaluations": 2_000_000,
    "t": 10_000_000,
    "sigma": MAX_SIGMA,
}
LOWER: dict[str, float] = {
    "stages": 1,
    "extra_evaluations": 0,
    "label": 0,
    "sigmas": 0,
    "guidance_interval": 0,
    "image_guidance_scale": 0,
    "guided_evaluations": 0,
    "t": 0,
    "sigma": 0,
}
PICTURE_DIGEST = re.compile("sha256:[0-9a-f]{64}")
MAX_TEXT = 1000  # characters, where a field has no limit of its own


def check_limits(request: SamplingRequest) -> None:
    """Check every field of a request.

    Raises:
        RecordError: naming the first field that is out of range.
    """
    for each in fields(request):
        value = getattr(request, each.name)
        if isinstance(value, str) and each.name in (*PICTURE_FIELDS, ARRAY):
            _check_digest(each.name, value)
        elif isinstance(value, str):
            _check_text(each.name, value, FIELDS.get(each.name))
        elif isinstance(value, list):
            _check_levels(each.name, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(each.name, value, FIELDS.get(each.name))
    _check_loras(request)
    _check_controls(request)
    if request.seed + request.n - 1 > MAX_SEED:
        raise RecordError(f"the last seed of the request is over {MAX_SEED}")


def _check_digest(name: str, text: str) -> None:
    if not PICTURE_DIGEST.fullmatch(text):
        raise RecordError(f"{name} of the request is {text!r:.60} (allowed: sha256: and 64 hexadecimal digits)")


def _check_levels(name: str, levels: list[float]) -> None:
    shortest, longest = FIELDS[name].min_length or 0, FIELDS[name].max_length or 0
    if not shortest <= len(levels) <= longest or any(type(level) not in (int, float) for level in levels):
        raise RecordError(f"{name} of the request is not a list of {shortest} … {longest} numbers")
    for level in levels:
        _check_number(name, level, None)


def _check_loras(request: SamplingRequest) -> None:
    if len(request.loras) > MAX_LORAS:
        raise RecordError(f"loras of the request has {len(request.loras)} items (allowed: {MAX_LORAS})")
    for lora in request.loras:
        _check_text("loras.name", lora.name, LORA_FIELDS["name"])
        _check_text("loras.digest", lora.digest, LORA_FIELDS["digest"])
        _check_number("loras.weight", lora.weight, LORA_FIELDS["weight"])
    names = [lora.name for lora in request.loras]
    if len(set(names)) < len(names):
        raise RecordError("loras of the request names an adapter twice")


def _check_controls(request: SamplingRequest) -> None:
    if len(request.controls) > MAX_CONTROLS:
        raise RecordError(f"controls of the request has {len(request.controls)} items (allowed: {MAX_CONTROLS})")
    for control in request.controls:
        _check_text("controls.name", control.name, CONTROL_FIELDS["name"])
        _check_text("controls.digest", control.digest, CONTROL_FIELDS["digest"])
        _check_digest("controls.image", control.image)
        for name in ("scale", "start", "end"):
            _check_number(f"controls.{name}", getattr(control, name), CONTROL_FIELDS[name])


def _check_text(name: str, text: str, field: RequestField | None) -> None:
    choices = field.choices if field is not None else ()
    if choices and text not in choices:
        raise RecordError(f"{name} of the request is {text!r:.60} (allowed: {', '.join(choices)})")
    longest = max(MAX_TEXT, (field.max_length or 0) if field is not None else 0)
    if len(text) > longest:
        raise RecordError(f"{name} of the request has {len(text)} characters (allowed: {longest})")


def _check_number(name: str, number: float, field: RequestField | None) -> None:
    low = LOWER.get(name, field.ge if field is not None and field.ge is not None else float("-inf"))
    high = UPPER.get(name, field.le if field is not None and field.le is not None else float("inf"))
    if not low <= number <= high:
        raise RecordError(f"{name} of the request is {number!s:.40} (allowed: {low:g} … {high:g})")
