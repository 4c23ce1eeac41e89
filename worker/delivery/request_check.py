"""Checks a job's request against the model that is to run it, before anything is allocated for it."""

from __future__ import annotations

from denoised.jobs.errors import RecordError
from denoised.jobs.request import SamplingRequest
from denoised.model.serving.card import ModelCard


def check_request(request: SamplingRequest, card: ModelCard) -> None:
    """Check that a request is one that the front end accepts for this model.

    A request comes from Redis: another version, or whoever may write there, may have queued anything.

    Raises:
        RecordError: naming the field, its value and the limit.
    """
    limits = {
        "n": (request.n, card.max_images),
        "steps": (request.steps, card.timesteps),
        "preview_every": (request.preview_every, request.steps),
        "stages": (request.stages, card.stages.get(request.sampler, 1)),
        "extra_evaluations": (request.extra_evaluations, card.extra_evaluations.get(request.sampler, 0)),
        "label": (request.label or 0, max(0, len(card.labels) - 1)),
    }
    for name, (value, limit) in limits.items():
        if value > limit:
            raise RecordError(f"{name} of the request is {value} (allowed for {card.name}: up to {limit})")
    if request.model != card.name:
        raise RecordError(f"the request is for the model {request.model!r:.60} (allowed in this queue: {card.name})")
