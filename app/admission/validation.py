"""A request checked against the card of the model that it names."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, cast

from denoised.app.admission.control_fields import control_errors, control_values
from denoised.app.admission.guided_evaluations import count_guided
from denoised.app.admission.noise_levels import learned_errors, level_errors, without_end
from denoised.app.admission.picture_fields import picture_errors
from denoised.app.http.errors import InvalidRequest, Unavailable
from denoised.app.http.validation_errors import format_value, join_names
from denoised.jobs.lora import Lora, LoraFields
from denoised.jobs.request import FIELDS, MAX_SEED, RequestFields
from denoised.jobs.request_choices import TIMESTEP_SPACINGS
from denoised.jobs.sampling_request import DEFAULTS, SamplingRequest
from denoised.model.serving.card import ModelCard

DRAWN_SEEDS = 2**32
IMAGE_GUIDANCE = 1.5  # of Brooks et al. 2023 (arXiv:2211.09800) and of diffusers' pipeline

Errors = Iterator[tuple[str, str]]


NOTHING_GIVEN: RequestFields = {}


def choose_card(
    name: str | None, cards: Sequence[ModelCard], known: Sequence[str], given: RequestFields = NOTHING_GIVEN
) -> ModelCard:
    """The card of the model that a request names; without a name, the first that takes every input of the request.

    known: every model that was ever served here.
    given: the request's fields; if no card takes all of its inputs, the first is chosen, which refuses them by name.

    Raises:
        Unavailable: when no live worker serves the model.
        InvalidRequest: when no worker ever served a model of that name.
    """
    if name is None:
        if not cards:
            raise Unavailable("no worker serves any model now", headers={"Retry-After": "5"})
        inputs = _given_inputs(given).keys()
        return next((card for card in cards if inputs <= set(card.inputs)), cards[0])
    for card in cards:
        if card.name == name:
            return card
    if name in known or not cards:
        raise Unavailable(f"no worker serves the model {format_value(name)} now", headers={"Retry-After": "5"})
    raise InvalidRequest(
        [("model", f"{format_value(name)} is not served (served: {join_names([card.name for card in cards])})")]
    )


def resolve_request(given: RequestFields, card: ModelCard) -> SamplingRequest:
    """Fill in every default and check every field against the card.

    given: fields that have passed the checks of `app.http.requests.request_body`; None means the default.

    Raises:
        InvalidRequest: naming every field that is wrong, its value and the limit.
    """
    given = cast(RequestFields, {name: value for name, value in given.items() if value not in (None, [])})
    values: dict[str, Any] = {**DEFAULTS, **_model_defaults(given, card), **given}
    if values["sigmas"] is not None:
        values["sigmas"] = without_end(values["sigmas"])
        values["steps"] = len(values["sigmas"])
    errors = [*_input_errors(given, card), *_label_errors(given, card), *_sampler_errors(values, card)]
    errors += [*_size_errors(values, card), *_limit_errors(values, card), *_grid_errors(values, card)]
    errors += _lora_errors(given.get("loras") or [], card)
    errors += control_errors(given.get("controls") or [], card)
    levels = {**_default_levels(given, card), **given}
    errors += picture_errors(given, card)
    errors += [*_guidance_errors(given, values["guidance_scale"], card), *level_errors(levels, card)]
    errors += learned_errors(values, card)
    if errors:
        raise InvalidRequest(errors)
    label = card.class_index(values["label"]) if "label" in values else None
    return SamplingRequest(
        **values
        | {
            "model": card.name,
            "label": label,
            "label_name": card.labels[label] if label is not None else None,
            # An empty text is no text, and the model's own size is no choice: pictures carry neither.
            "prompt": values["prompt"] or None,
            "negative_prompt": values["negative_prompt"] or None,
            "loras": _loras(given.get("loras") or [], card),
            "controls": control_values(given.get("controls") or [], card),
            "width": values["width"] if values["width"] != card.width else None,
            "height": values["height"] if values["height"] != card.height else None,
            "seed": values.get("seed", secrets.randbelow(DRAWN_SEEDS)),
            "image_guidance_scale": _image_guidance(given, card),
            "stages": card.stages.get(values["sampler"], 1),
            "guidance_embedded": card.guidance_embedded,
            "guided_evaluations": count_guided(values, card),
            "extra_evaluations": card.extra_evaluations.get(values["sampler"], 0) if values["steps"] > 1 else 0,
        }
    )


def _image_guidance(given: RequestFields, card: ModelCard) -> float | None:
    """How far guidance leads toward the picture that a model edits; None for other models."""
    return given.get("image_guidance_scale") or IMAGE_GUIDANCE if card.image_guidance else None


def _model_defaults(given: RequestFields, card: ModelCard) -> dict[str, Any]:
    """The defaults from the card. Guidance stays off where it has no effect, and its rescaling with it."""
    defaults = {name: getattr(card.default, name) for name, field in FIELDS.items() if field.of_model}
    defaults |= _default_levels(given, card)
    if not card.guidance_embedded and not (_has_condition(given) and card.unconditional):
        defaults["guidance_scale"] = 1.0
    if given.get("guidance_scale", defaults["guidance_scale"]) == 1.0:
        defaults["guidance_rescale"] = 0.0
    elif given.get("guidance_scale") is None and card.default.guidance_interval is not None:
        defaults["guidance_interval"] = list(card.default.guidance_interval)
    return defaults


def _default_levels(given: RequestFields, card: ModelCard) -> dict[str, Any]:
    """The card's noise levels, which belong to its sampler: for requests that name neither a sampler nor levels.

    Pictures name their sampler, so those that were made before a card had levels are made again as they were.
    """
    if any(given.get(name) is not None for name in ("sampler", "spacing", "karras", "sigmas")):
        return {}
    own, bounds = card.default, {"sigma_min": given.get("sigma_min"), "sigma_max": given.get("sigma_max")}
    if own.sigmas is not None and given.get("steps") is None and bounds == {"sigma_min": None, "sigma_max": None}:
        return {"sigmas": list(own.sigmas)}
    levels = {name: getattr(own, name) for name in ("spacing", *bounds)}
    return {name: value for name, value in levels.items() if value is not None}


def _has_condition(given: RequestFields) -> bool:
    """Whether there is something to guide toward, or away from."""
    return given.get("label") is not None or bool(given.get("prompt") or given.get("negative_prompt"))


def _input_errors(given: RequestFields, card: ModelCard) -> Errors:
    """Fields that this kind of model does not take."""
    for name, value in _given_inputs(given).items():
        if name not in card.inputs:
            inputs = join_names(card.inputs) or "none"
            yield name, f"{format_value(value)} was given, but {card.name} takes no {name} (its inputs: {inputs})"


def _given_inputs(given: RequestFields) -> dict[str, object]:
    """The fields that only some models take. A default, which every job object carries, asks for nothing. Fields of
    other tasks than making images are none of them."""
    own = {name: value for name, value in given.items() if name in FIELDS}
    asked = {name: value for name, value in own.items() if value not in (None, [], DEFAULTS.get(name))}
    return {name: value for name, value in asked.items() if FIELDS[name].input}


def _label_errors(given: RequestFields, card: ModelCard) -> Errors:
    label = given.get("label")
    if label is None:
        if not card.unconditional:
            yield "label", f"{card.name} is conditional only, so it needs a label (allowed: {join_names(card.labels)})"
    elif card.labels and card.class_index(label) is None:
        several = card.matching_labels(label) if isinstance(label, str) else []
        if several:
            yield "label", f"{format_value(label)} is ambiguous (allowed: an exact name: {join_names(several)})"
            return
        limit = f"0 … {len(card.labels) - 1}, or one of: {join_names(card.labels)}"
        null = "; null = unconditional" if card.unconditional else ""
        yield "label", f"{format_value(label)} is not a class of {card.name} (allowed: {limit}{null})"


def _sampler_errors(values: dict[str, Any], card: ModelCard) -> Errors:
    sampler = values["sampler"]
    if sampler not in card.samplers:
        yield "sampler", f"{format_value(sampler)} is not offered (offered: {join_names(card.samplers)})"
        return
    for name, field in FIELDS.items():
        takers = getattr(card, field.samplers) if field.samplers else None
        if takers is not None and values.get(name) and sampler not in takers:
            value = format_value(values[name])
            yield name, f"{value} was given, but {sampler} takes no {name} (taken by: {join_names(takers) or 'none'})"


def _size_errors(values: dict[str, Any], card: ModelCard) -> Errors:
    """Sides that the model does not make, and too many pixels. Models of one size refuse the fields themselves."""
    if card.size_multiple is None or card.max_pixels is None:
        return
    width, height = values["width"] or card.width, values["height"] or card.height
    wrong = [(name, side) for name, side in (("width", width), ("height", height)) if not card.takes_side(side)]
    for name, side in wrong:
        yield name, f"{side} is not a size of {card.name} (allowed: multiples of {card.size_multiple})"
    if not wrong and width * height > card.max_pixels:
        largest = f"width·height up to {card.max_pixels}"
        name = "width" if width >= height else "height"
        yield name, f"{width}×{height} has {width * height} pixels, too many for {card.name} (allowed: {largest})"


def _lora_errors(given: Sequence[LoraFields], card: ModelCard) -> Errors:
    """Adapters that the model does not offer, or not with these contents, and one that is named twice."""
    if not card.loras:
        return
    names = [lora["name"] for lora in given]
    for k, lora in enumerate(given):
        name, digest = lora["name"], card.lora_digest(lora["name"])
        if digest is None:
            offered = join_names([each.name for each in card.loras])
            yield f"loras.{k}.name", f"{format_value(name)} is not offered by {card.name} (offered: {offered})"
        elif name in names[:k]:
            yield f"loras.{k}.name", f"{format_value(name)} is named twice (allowed: each adapter once)"
        elif (given_digest := lora.get("digest")) not in (None, digest):
            served = f"another file is served under the name {format_value(name)} (served: {digest})"
            yield f"loras.{k}.digest", f"{format_value(given_digest)}: {served}"


def _loras(given: Sequence[LoraFields], card: ModelCard) -> tuple[Lora, ...]:
    """The adapters of a request, in order of name: their order changes no picture."""
    weights = {lora["name"]: lora.get("weight") for lora in given}
    named = sorted((name, 1.0 if weight is None else float(weight)) for name, weight in weights.items())
    return tuple(Lora(name, weight, card.lora_digest(name) or "") for name, weight in named)


def _limit_errors(values: dict[str, Any], card: ModelCard) -> Errors:
    """Numbers beyond limits that depend on the model or on other fields."""
    n, steps, every = values["n"], values["steps"], values["preview_every"]
    if steps > card.timesteps:
        yield "steps", f"{steps} is over {card.timesteps}, the model's number of training timesteps"
    if n > card.max_images:
        yield "n", f"{n} is over {card.max_images}, the most images of one job"
    if (skip := values["clip_skip"]) > card.max_clip_skip and "clip_skip" in card.inputs:
        yield "clip_skip", f"{skip} is over {card.max_clip_skip}, the most layers that can be skipped in {card.name}"
    if (preview := values["preview"]) not in card.previews:
        known = ", ".join(card.previews)
        yield "preview", f"{format_value(preview)} is not known to the workers of {card.name} (allowed: {known})"
    if every > steps:
        yield "preview_every", f"{every} is over {steps}, the number of steps"
    if values["seed_to"] is None and values["mix"] != DEFAULTS["mix"]:
        yield "mix", f"{values['mix']:g} needs seed_to or variation"
    largest = MAX_SEED - (n - 1)
    if "seed" in values and values["seed"] > largest:
        yield "seed", f"{values['seed']} is over {largest}, which is 2^53 − n"


def _grid_errors(values: dict[str, Any], card: ModelCard) -> Errors:
    """More steps than the sampler has timesteps for, as in `model.diffusion.grids`."""
    sampler, steps = values["sampler"], values["steps"]
    if sampler not in card.samplers or steps > card.timesteps:
        return
    if tuned := card.grid.consistency:
        if steps > len(tuned):
            yield "steps", f"{steps} is over {len(tuned)}, the noise levels that {card.name} was tuned at"
        return
    solver = sampler in card.solver_samplers
    visited = card.grid.visited.get(sampler, card.timesteps) if solver else card.timesteps
    first = card.first_leading_timestep(sampler, steps)
    if steps > visited:
        yield "steps", f"{steps} is over {visited}, the number of timesteps that {sampler} visits in this model"
    elif _is_leading(values, card) and first >= visited:
        yield "steps", f"{steps} leading steps start at timestep {first} (allowed: up to {visited - 1})"


def _is_leading(values: dict[str, Any], card: ModelCard) -> bool:
    given = values.get("spacing")
    spacing = given if given in TIMESTEP_SPACINGS else card.grid.spacing
    return card.takes_spacing(values["sampler"]) and spacing == "leading"


def _guidance_errors(given: RequestFields, scale: float, card: ModelCard) -> Errors:
    """Guidance needs a label or a prompt, and a model that also works without one."""
    if card.guidance_embedded:
        if rescale := given.get("guidance_rescale"):
            yield "guidance_rescale", f"{rescale:g} was given, but {card.name} has one evaluation a step (allowed: 0)"
        return
    if scale != 1.0 and not card.unconditional:
        yield "guidance_scale", f"{scale:g} needs a model that also samples without a label"
    elif scale != 1.0 and not _has_condition(given):
        yield "guidance_scale", f"{scale:g} needs a {'prompt' if card.prompts else 'label'} (allowed without one: 1)"
    interval = given.get("guidance_interval")
    if interval is not None and card.guidance_embedded:
        yield "guidance_interval", f"{format_value(interval)}: {card.name} takes its guidance at every noise level"
    elif interval is not None and scale == 1.0:
        yield "guidance_interval", f"{format_value(interval)} needs a guidance_scale over 1"
    if interval is not None and interval[0] >= interval[1]:
        yield "guidance_interval", f"{format_value(interval)} does not rise (allowed: a low level, then a higher one)"
    rescale = given.get("guidance_rescale")
    if rescale and scale == 1.0:
        yield "guidance_rescale", f"{rescale:g} needs a guidance_scale over 1 (allowed without: 0)"
