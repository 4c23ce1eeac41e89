"""A request for noise, a score or a likelihood, checked against the card of the model that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from denoised.app.admission.noise_levels import outside_levels
from denoised.app.admission.validation import resolve_request
from denoised.app.http.errors import InvalidRequest
from denoised.app.http.validation_errors import format_value
from denoised.jobs.request import FIELDS, MAX_SEED, RequestFields
from denoised.jobs.sampling_request import SamplingRequest
from denoised.jobs.task_request import ARRAY, DEFAULT_INTEGRATION_STEPS, DEFAULT_PROBES, Task
from denoised.model.serving.card import ModelCard

Errors = Iterator[tuple[str, str]]
STARTS = "start"  # `ModelCard.pictures` of the models that see nothing but the noisy picture


def cards_of_tasks(cards: Sequence[ModelCard], name: str | None) -> Sequence[ModelCard]:
    """The cards to choose from: if no model is named, those that take a picture at a noise level, if there are any.

    A consistency model has no scores, so it is none of them.
    """
    able = [card for card in cards if card.pictures == STARTS and not card.grid.consistency]
    return able if name is None and able else cards


def resolve_task(task: Task, given: Mapping[str, Any], card: ModelCard) -> SamplingRequest:
    """Fill in every default and check every field against the card.

    given: fields that have passed the checks of `app.http.requests.task_body`, each picture as its digest.

    Raises:
        InvalidRequest: naming every field that is wrong, its value and the limit.
    """
    if card.pictures != STARTS:
        allowed = 'allowed: models whose card says "pictures": "start"'
        raise InvalidRequest([("model", f"{format_value(card.name)} has no noisy pictures alone ({allowed})")])
    if card.grid.consistency and task != "noise":
        why = "a consistency model predicts where a trajectory ends, which is no score"
        raise InvalidRequest([("model", f"{format_value(card.name)} has no {task}: {why} (allowed: other models)")])
    errors = [*_picture_errors(given), *_level_errors(task, given, card), *_count_errors(task, given, card)]
    shared = {name: value for name, value in given.items() if name in FIELDS and name != "steps"}
    try:
        # The sampler is not used. Naming it leaves out the levels that belong to the card's own.
        fields = {"guidance_scale": 1.0, **shared, "sampler": card.default.sampler, "guidance_rescale": 0.0}
        request = resolve_request(cast(RequestFields, fields), card)
    except InvalidRequest as error:
        errors += [(each["field"], each["message"]) for each in error.extra["errors"]]
    if errors:
        raise InvalidRequest(errors)
    return _of_task(request, task, given)


def _of_task(request: SamplingRequest, task: Task, given: Mapping[str, Any]) -> SamplingRequest:
    """A request for an image as one for a task."""
    request = replace(request, task=task, stages=1, extra_evaluations=0, guided_evaluations=None)
    if task == "likelihood":
        steps, probes = given.get("steps") or DEFAULT_INTEGRATION_STEPS, given.get("probes") or DEFAULT_PROBES
        return replace(request, steps=steps, n=probes)
    t, sigma = (None if given.get(name) is None else float(given[name]) for name in ("t", "sigma"))
    adds_noise = task == "noise" or given.get("seed") is not None
    return replace(request, steps=1, adds_noise=adds_noise, t=t, sigma=sigma, x_t=given.get(ARRAY))


def _picture_errors(given: Mapping[str, Any]) -> Errors:
    if given.get(ARRAY) is not None:
        for name in ("image", "seed"):
            if given.get(name) is not None:
                yield name, f"{format_value(given[name])} was given with {ARRAY} (allowed: one of them)"
    elif given.get("image") is None:
        yield "image", "is missing (allowed: a PNG, JPEG or WebP in base64, or job:ID/images/K)"


def _level_errors(task: Task, given: Mapping[str, Any], card: ModelCard) -> Errors:
    """A level that is missing, named twice, or outside those of the model."""
    if task == "likelihood":
        return
    t, sigma = given.get("t"), given.get("sigma")
    if t is None and sigma is None:
        yield "t", f"is missing (allowed: 0 … {card.timesteps - 1}, or sigma, a noise level σ/α)"
    elif t is not None and sigma is not None:
        yield "sigma", f"{sigma:g} was given with t = {t:g} (allowed: one of them)"
    elif t is not None and t > card.timesteps - 1:
        yield "t", f"{t:g} is over {card.timesteps - 1}, the last timestep of {card.name}"
    elif sigma is not None and sigma <= 0:
        yield "sigma", f"{sigma:g} is not a noise level (allowed: over 0)"
    elif sigma is not None:
        yield from (("sigma", message) for message in outside_levels(sigma, card.grid))


def _count_errors(task: Task, given: Mapping[str, Any], card: ModelCard) -> Errors:
    """More estimates or steps than the model takes, and a seed that leaves none for the last estimate."""
    if task != "likelihood":
        return
    probes, steps = given.get("probes") or DEFAULT_PROBES, given.get("steps") or 0
    if probes > card.max_images:
        yield "probes", f"{probes} is over {card.max_images}, the most images of one job"
    if steps > card.timesteps:
        yield "steps", f"{steps} is over {card.timesteps}, the model's number of training timesteps"
    largest = MAX_SEED - (probes - 1)
    if (given.get("seed") or 0) > largest:
        yield "seed", f"{given['seed']} is over {largest}, which is 2^53 − probes"
