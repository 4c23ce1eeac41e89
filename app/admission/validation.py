"""A request body against the card of the model it names."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from denoised.app.http.errors import InvalidRequest, Unavailable
from denoised.app.http.schemas import MAX_SEED, GenerateRequest
from denoised.app.http.validation_errors import format_value
from denoised.jobs.request import SamplingRequest
from denoised.model.serving.card import ModelCard

LISTED = 20  # names that an error message lists at most


def choose_card(name: str | None, cards: Sequence[ModelCard], known: Sequence[str]) -> ModelCard:
    """The card of the model that a request means; the first one when it names none.

    known: every model that was ever served here.

    Raises:
        Unavailable: when no live worker serves it.
        InvalidRequest: for a name that nobody ever served.
    """
    if name is None:
        if not cards:
            raise Unavailable("no worker serves any model now", headers={"Retry-After": "5"})
        return cards[0]
    for card in cards:
        if card.name == name:
            return card
    if name in known or not cards:
        raise Unavailable(f"no worker serves the model {format_value(name)} now", headers={"Retry-After": "5"})
    raise InvalidRequest(
        [("model", f"{format_value(name)} is not served (served: {listed([card.name for card in cards])})")]
    )


def resolve(body: GenerateRequest, card: ModelCard) -> SamplingRequest:
    """Fill in every default and check every field against the card.

    Raises:
        InvalidRequest: naming all fields that are wrong, the values and the limits.
    """
    errors: list[tuple[str, str]] = []
    label = _label(body, card, errors)
    sampler = body.sampler or card.default.sampler
    if sampler not in card.samplers:
        errors.append(("sampler", f"{format_value(sampler)} is not offered (offered: {listed(card.samplers)})"))
    elif body.eta and sampler not in card.eta_samplers:
        errors.append(
            ("eta", f"{body.eta} was given, but {sampler} takes none (taken by: {listed(card.eta_samplers)})")
        )
    elif body.karras and sampler not in card.karras_samplers:
        taken = f"taken by: {listed(card.karras_samplers)}"
        errors.append(("karras", f"true was given, but {sampler} keeps to the training's timesteps ({taken})"))
    steps = body.steps or card.default.steps
    if steps > card.timesteps:
        errors.append(("steps", f"{steps} is over {card.timesteps}, the model's number of training timesteps"))
    n, preview_every = body.n or 1, body.preview_every or 0
    if n > card.max_images:
        errors.append(("n", f"{n} is over {card.max_images}, the most images of one job"))
    if preview_every > steps:
        errors.append(("preview_every", f"{preview_every} is over {steps}, the number of steps"))
    largest = MAX_SEED - (n - 1)
    if body.seed is not None and body.seed > largest:
        errors.append(("seed", f"{body.seed} is over {largest}, which is 2^53 − n"))
    guidance = _guidance(body, card, label, errors)
    rescale = _rescale(body, card, guidance, errors)
    if errors:
        raise InvalidRequest(errors)
    return SamplingRequest(
        model=card.name,
        label=label,
        label_name=card.labels[label] if label is not None else None,
        n=n,
        seed=body.seed if body.seed is not None else secrets.randbelow(2**32),
        sampler=sampler,
        steps=steps,
        eta=body.eta or 0.0,
        guidance_scale=guidance,
        format=body.format or "png",
        preview_every=preview_every,
        preview=body.preview or "x0",
        guidance_rescale=rescale,
        spacing=body.spacing,
        karras=body.karras,
        stages=card.stages.get(sampler, 1),
    )


def _label(body: GenerateRequest, card: ModelCard, errors: list[tuple[str, str]]) -> int | None:
    if body.label is None:
        if not card.unconditional:
            errors.append(("label", f"{card.name} was trained with labels alone (allowed: {listed(card.labels)})"))
        return None
    if not card.labels:
        errors.append(
            ("label", f"{format_value(body.label)} was given, but {card.name} knows no labels (allowed: null)")
        )
        return None
    label = card.class_index(body.label)
    if label is None:
        limit = f"0 … {len(card.labels) - 1}, or one of: {listed(card.labels)}"
        errors.append(
            ("label", f"{format_value(body.label)} is no class of {card.name} (allowed: {limit}; null = unconditional)")
        )
    return label


def _guidance(body: GenerateRequest, card: ModelCard, label: int | None, errors: list[tuple[str, str]]) -> float:
    """Without a label there is nothing to guide towards: off unless asked for, then an error."""
    if body.guidance_scale is None:
        return card.default.guidance_scale if label is not None and card.unconditional else 1.0
    if body.guidance_scale != 1.0 and not card.unconditional:
        errors.append(("guidance_scale", f"{body.guidance_scale:g} needs a model that can do without a label"))
        return 1.0
    if body.guidance_scale != 1.0 and body.label is None:
        errors.append(("guidance_scale", f"{body.guidance_scale:g} needs a label (allowed without one: 1)"))
    return float(body.guidance_scale)


def _rescale(body: GenerateRequest, card: ModelCard, guidance: float, errors: list[tuple[str, str]]) -> float:
    """Without guidance there is nothing to rescale."""
    if body.guidance_rescale is None:
        return card.default.guidance_rescale if guidance != 1.0 else 0.0
    if body.guidance_rescale and guidance == 1.0:
        errors.append(
            ("guidance_rescale", f"{body.guidance_rescale:g} needs a guidance_scale over 1 (allowed without: 0)")
        )
    return float(body.guidance_rescale)


def listed(names: Sequence[str]) -> str:
    """Names for an error message: all of them, or the first and how many there are."""
    return ", ".join(names[:LISTED]) + (f", … ({len(names)} in all)" if len(names) > LISTED else "")
