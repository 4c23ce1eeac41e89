"""What clients of AUTOMATIC1111's web UI may ask for and this server does not do: each is refused by its name.

A field that the web UI does not know is ignored, as the web UI does; `info` in the response lists it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from denoised.app.http.errors import InvalidRequest
from denoised.app.http.validation_errors import MAX_ERRORS, format_value

Errors = Iterator[tuple[str, str]]

# Fields that turn something on, what that is, and their values without effect besides null, false, 0, "" and [].
UNSERVED: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "enable_hr": ("the second pass at a higher resolution (hires fix)", ()),
    "styles": ("a prompt style of the server", ()),
    "subseed_strength": ("variation seeds", ()),
    "seed_resize_from_w": ("noise of another size", (-1,)),
    "seed_resize_from_h": ("noise of another size", (-1,)),
    "restore_faces": ("face restoration", ()),
    "tiling": ("seamless tiling", ()),
    "refiner_checkpoint": ("a refiner", ("None",)),
    "firstpass_image": ("a picture to start from", ()),
    "script_name": ("scripts", ("None",)),
    "infotext": ("reading the request from a picture's infotext", ()),
    "s_churn": ("churn", ()),
    "s_tmin": ("churn", ()),
    "s_noise": ("churn", (1,)),
    "s_min_uncond": ("skipping the negative prompt", ()),
}
# Fields that change no picture, or only together with one of `UNSERVED`.
WITHOUT_EFFECT = frozenset(
    {
        "comments",
        "disable_extra_networks",
        "denoising_strength",
        "do_not_save_grid",
        "do_not_save_samples",
        "firstphase_height",
        "firstphase_width",
        "force_task_id",
        "hr_additional_modules",
        "hr_cfg",
        "hr_checkpoint_name",
        "hr_negative_prompt",
        "hr_prompt",
        "hr_resize_x",
        "hr_resize_y",
        "hr_sampler_name",
        "hr_scale",
        "hr_scheduler",
        "hr_second_pass_steps",
        "hr_upscaler",
        "image_cfg_scale",
        "include_init_images",
        "inpaint_full_res",
        "inpaint_full_res_padding",
        "inpainting_fill",
        "inpainting_mask_invert",
        "initial_noise_multiplier",
        "mask_blur",
        "override_settings_restore_afterwards",
        "refiner_switch_at",
        "resize_mode",
        "s_tmax",
        "save_images",
        "script_args",
        "subseed",
    }
)
# The syntax of prompts that changes what is sampled. Emphasis, "(word:1.2)", is not among it.
SYNTAX = (
    (re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>"), "an adapter (allowed: <lora:NAME:WEIGHT> in the prompt)"),
    (re.compile(r"\bAND\b"), 'composing prompts with AND (write "and")'),
    (re.compile(r"\[[^\[\]|]*\|[^\[\]]*\]"), "alternating words"),
    (re.compile(r"\[[^\[\]:]*:(?:[^\[\]:]*:)?\s*[0-9.]+\s*\]"), "prompt editing"),
)


def refuse(errors: Sequence[tuple[str, str]]) -> None:
    """Refuse a request if there are errors; at most `MAX_ERRORS` are listed.

    Raises:
        InvalidRequest: for any error.
    """
    more = len(errors) - MAX_ERRORS
    if errors:
        raise InvalidRequest([*errors[:MAX_ERRORS], *([("body", f"and {more} more errors")] if more > 0 else [])])


def unserved_fields(extra: Mapping[str, Any]) -> Errors:
    """The fields that turn on what is not served. extra: fields of the request."""
    for name, (what, neutral) in UNSERVED.items():
        value = extra.get(name)
        if value and value not in neutral:
            yield name, f"{format_value(value)} was given, but {what} is not served (allowed: null, false, 0 or empty)"


def ignored_fields(extra: Mapping[str, Any]) -> list[str]:
    """The names of fields that the web UI does not know; the first `MAX_ERRORS` of them."""
    unknown = [name for name in extra if name not in UNSERVED and name not in WITHOUT_EFFECT]
    return [plain_name(name) for name in unknown[:MAX_ERRORS]]


def plain_name(name: str) -> str:
    """A name that a client has chosen, short enough for a message and free of unpaired surrogates."""
    return format_value(name)[1:-1]


def enabled_scripts(scripts: Mapping[str, Any]) -> Errors:
    """The scripts that are switched on: those whose arguments are not empty, and do not begin with false.

    scripts: `alwayson_scripts`.
    """
    for name, options in scripts.items():
        arguments = options.get("args") if isinstance(options, dict) else options
        first = arguments[0] if isinstance(arguments, list) and arguments else arguments
        if first and not (isinstance(first, dict) and first.get("enabled") is False):
            yield "alwayson_scripts", f"the script {plain_name(name)} is not served (allowed: none, or no arguments)"


def unserved_syntax(name: str, prompt: str) -> Errors:
    """The parts of a prompt that the web UI would not read as text. name: of the field."""
    for pattern, what in SYNTAX:
        if found := pattern.search(prompt):
            yield name, f"{format_value(found[0])} is not served: {what}"
