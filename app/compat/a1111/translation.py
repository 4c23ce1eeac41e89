"""A request of AUTOMATIC1111's web UI in the fields of `POST /generate`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from denoised.app.compat.a1111.a1111_schemas import RANDOM_SEED, Txt2ImgRequest
from denoised.app.compat.a1111.checkpoints import OPTION
from denoised.app.compat.a1111.controlnet_units import is_script, read_units, unit_field
from denoised.app.compat.a1111.lora_tags import TaggedPrompt, read_tags
from denoised.app.compat.a1111.refusals import (
    Errors,
    enabled_scripts,
    plain_name,
    refuse,
    unserved_fields,
    unserved_syntax,
)
from denoised.app.compat.a1111.sampler_names import (
    SamplerName,
    ScheduleName,
    find_sampler,
    find_schedule,
    samplers_of,
    schedules_of,
    split_name,
)
from denoised.app.compat.prompts import label_of
from denoised.app.http.errors import InvalidRequest
from denoised.app.http.validation_errors import format_value, join_names
from denoised.jobs.request import MAX_PROMPT, RequestFields
from denoised.jobs.request_choices import FORMATS
from denoised.model.serving.card import ModelCard

DEFAULT_SIDE = 512  # of the web UI; its clients send it where their user chose no size
PREVIEW_EVERY = 10  # steps; the web UI's default
# The web UI's names of our fields, for errors.
NAMES = {
    "label": "prompt",
    "guidance_scale": "cfg_scale",
    "n": "batch_size",
    "sampler": "sampler_name",
    "spacing": "scheduler",
    "karras": "scheduler",
    "loras": "prompt",
    "image": "init_images",
    "strength": "denoising_strength",
    "image_guidance_scale": "image_cfg_scale",
}
FORMAT_OPTION = "samples_format"
CLIP_OPTION = "CLIP_stop_at_last_layers"  # 1 reads the text encoder's last layer, where our clip_skip is 0
EMPHASIS = re.compile(r"[()\[\]\\]|\bBREAK\b")
# The options that `override_settings` may name only with these values, because nothing else is served.
FIXED_OPTIONS: Mapping[str, tuple[object, ...]] = {
    "sd_vae": ("Automatic", "None"),
    "eta_noise_seed_delta": (0,),
}


def translate(body: Txt2ImgRequest, card: ModelCard) -> RequestFields:
    """The same request in the fields of `POST /generate`.

    Raises:
        InvalidRequest: when a field asks for what is not served, or does not fit the model.
    """
    settings, scripts = body.override_settings or {}, body.alwayson_scripts or {}
    units = read_units(scripts, card, body.start_picture)
    errors = [
        *unserved_fields(body.extra),
        *enabled_scripts({name: options for name, options in scripts.items() if not is_script(name)}),
        *units.errors,
        *_option_errors(settings, card),
    ]
    tagged = read_tags(body.prompt)
    errors += [
        *tagged.errors,
        *_adapter_errors(tagged, card),
        *_prompt_errors(body, tagged.text, card),
        *_count_errors(body, card),
    ]
    sampler, schedule = _sampler(body, card, errors)
    width, height = _size(body, card, errors)
    errors += _eta_errors(body, sampler, card)
    refuse(errors)
    fields: RequestFields = {
        "model": card.name,
        **_prompt_fields(body, tagged, card),
        "controls": units.controls or None,
        "width": width,
        "height": height,
        "n": body.count,
        "seed": None if body.seed == RANDOM_SEED else body.seed,
        "sampler": sampler.sampler if sampler is not None and _names_sampler(body) else None,
        "steps": body.steps,
        "eta": body.eta if sampler is not None and sampler.sampler in card.eta_samplers else None,
        "format": _format(settings),
        "preview_every": PREVIEW_EVERY if (body.steps or card.default.steps) > PREVIEW_EVERY else 0,
    }
    return {**fields, **schedule.fields} if schedule is not None else fields  # type: ignore[typeddict-item]


def _prompt_fields(body: Txt2ImgRequest, tagged: TaggedPrompt, card: ModelCard) -> RequestFields:
    guided = bool(tagged.text.strip() or body.negative_prompt)
    return {
        "label": None if card.prompts else label_of(tagged.text, card),
        "prompt": tagged.text if card.prompts else None,
        "loras": None if body.extra.get("disable_extra_networks") else tagged.loras or None,
        "negative_prompt": body.negative_prompt or None,
        "clip_skip": ((body.override_settings or {}).get(CLIP_OPTION) or 1) - 1 or None,
        "emphasis": _has_emphasis(body) if card.prompts else None,
        # With equal prompts on both sides guidance changes nothing; clients send a scale with an empty prompt, too.
        "guidance_scale": body.cfg_scale if guided else None,
    }


def _adapter_errors(tagged: TaggedPrompt, card: ModelCard) -> Errors:
    if tagged.loras and not card.prompts:  # a model of prompts lists its adapters in its own refusal
        yield "prompt", f"names the adapter {format_value(tagged.loras[0]['name'])}, but {card.name} takes no adapters"


def _has_emphasis(body: Txt2ImgRequest) -> bool | None:
    """True if the prompts contain the syntax of emphasis, which the web UI always reads; None if they do not."""
    return bool(EMPHASIS.search(f"{body.prompt} {body.negative_prompt or ''}")) or None


def renamed(error: InvalidRequest, body: Txt2ImgRequest) -> InvalidRequest:
    """An error about our fields as one about the web UI's."""
    scripts, errors = body.alwayson_scripts or {}, error.extra["errors"]
    return InvalidRequest([(_web_ui_name(each["field"], scripts), each["message"]) for each in errors])


def _web_ui_name(field: str, scripts: Mapping[str, Any]) -> str:
    first = field.partition(".")[0]
    return unit_field(field, scripts) if first == "controls" else NAMES.get(first, field)


def _option_errors(settings: Mapping[str, Any], card: ModelCard) -> Errors:
    for name, value in settings.items():
        field = f"override_settings.{plain_name(name)}"
        if name == CLIP_OPTION and value and (type(value) is not int or not 1 <= value <= card.max_clip_skip + 1):
            yield field, f"{format_value(value)} is not served (allowed: 1 … {card.max_clip_skip + 1})"
        elif name == FORMAT_OPTION and value and _format(settings) is None:
            yield field, f"{format_value(value)} is not served (allowed: {join_names(FORMATS)})"
        elif name == OPTION and value is not None and not isinstance(value, str):
            yield field, f"{format_value(value)} was given (allowed: a title of GET /sdapi/v1/sd-models)"
        elif name not in (FORMAT_OPTION, OPTION, CLIP_OPTION) and value and value not in FIXED_OPTIONS.get(name, ()):
            allowed = join_names([str(each) for each in FIXED_OPTIONS.get(name, ())]) or "null"
            yield field, f"{format_value(value)} is not served (allowed: {allowed})"


def _prompt_errors(body: Txt2ImgRequest, text: str, card: ModelCard) -> Errors:
    """text: the prompt without its tags."""
    if not card.prompts:
        return
    for name, prompt in (("prompt", text), ("negative_prompt", body.negative_prompt or "")):
        if len(prompt) > MAX_PROMPT:
            yield name, f"{len(prompt)} characters were given (allowed: {MAX_PROMPT})"
        else:
            yield from unserved_syntax(name, prompt)


def _count_errors(body: Txt2ImgRequest, card: ModelCard) -> Errors:
    if body.count > card.max_images:
        name = "n_iter" if (body.batch_size or 1) <= card.max_images else "batch_size"
        yield name, f"batch_size·n_iter is {body.count} (allowed: {card.max_images}, the most images of one job)"


def _sampler(
    body: Txt2ImgRequest, card: ModelCard, errors: list[tuple[str, str]]
) -> tuple[SamplerName | None, ScheduleName | None]:
    """The sampler and the schedule; None leaves them to the model. As in the web UI, a schedule at the end of the
    sampler's name comes before `scheduler`."""
    given = body.sampler_name or body.sampler_index or ""
    name, schedule = split_name(given)
    sampler = find_sampler(name or card.default.sampler, [card])
    if schedule is None and body.scheduler:
        schedule = find_schedule(body.scheduler)
        if schedule is None:
            errors.append(("scheduler", f"{format_value(body.scheduler)} is not served ({_offered_schedules(card)})"))
    if sampler is None:
        offered = join_names([each.name for each in samplers_of([card])])
        errors.append(("sampler_name", f"{format_value(given)} is not offered by {card.name} (offered: {offered})"))
        return None, None
    if not given and (schedule is None or not schedule.fields):
        return sampler, None  # all of it is the model's choice
    if schedule is None or not schedule.fields:
        own = find_schedule(sampler.schedule)
        return sampler, own if own is not None and own.is_offered(sampler.sampler, card) else None
    if not schedule.is_offered(sampler.sampler, card):
        errors.append(("scheduler", f"{schedule.label} was given, but {sampler.name} takes no such levels"))
    return sampler, schedule


def _names_sampler(body: Txt2ImgRequest) -> bool:
    """Whether the sampler is not left to the card, whose noise levels go with it."""
    return bool(split_name(body.sampler_name or body.sampler_index or "")[0])


def _offered_schedules(card: ModelCard) -> str:
    return f"offered: {join_names([each.label for each in schedules_of([card])])}"


def _size(body: Txt2ImgRequest, card: ModelCard, errors: list[tuple[str, str]]) -> tuple[int | None, int | None]:
    """The (width, height); None is the model's own.

    512×512 is the web UI's default, which its clients send unasked: where a model cannot make it, it is its own size.
    """
    sides = {"width": body.width, "height": body.height}
    if (body.width, body.height) == (DEFAULT_SIDE, DEFAULT_SIDE) and not _makes_default_size(card):
        return None, None
    if card.size_multiple is None:
        own = {"width": card.width, "height": card.height}
        errors += [
            (name, f"{side} is not a size of {card.name} (allowed: {own[name]})")
            for name, side in sides.items()
            if side is not None and side != own[name]
        ]
        return None, None
    return body.width, body.height


def _makes_default_size(card: ModelCard) -> bool:
    return card.takes_side(DEFAULT_SIDE) and (card.max_pixels or 0) >= DEFAULT_SIDE**2


def _eta_errors(body: Txt2ImgRequest, sampler: SamplerName | None, card: ModelCard) -> Errors:
    """A share of noise that a random sampler does not take. The web UI ignores it for samplers without noise."""
    if sampler is None or sampler.sampler in card.eta_samplers or not sampler.random:
        return
    if body.eta not in (None, 1.0):
        yield "eta", f"{body.eta:g} was given, but {sampler.name} adds all its noise (allowed: 1)"


def _format(settings: Mapping[str, Any]) -> Any:
    """The file format; None if the settings leave it out, or name none that is served."""
    value = settings.get(FORMAT_OPTION)
    name = "jpeg" if value == "jpg" else value
    return name if isinstance(name, str) and name in FORMATS else None
