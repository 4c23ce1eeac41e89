"""Checks a job's request against the model that is to run it, before anything is allocated for it."""

from __future__ import annotations

from denoised.jobs.errors import RecordError
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.serving.card import ModelCard


def check_request(request: SamplingRequest, card: ModelCard) -> None:
    """Check that a request is one that the front end accepts for this model.

    A request comes from Redis: another version, or anyone who may write there, may have queued anything.

    Raises:
        RecordError: naming the field, its value and the limit.
    """
    limits = {
        "n": (request.n, card.max_images),
        "steps": (request.steps, card.timesteps),
        "preview_every": (request.preview_every, request.steps),
        "stages": (request.stages, card.stages.get(request.sampler, 1)),
        "extra_evaluations": (request.extra_evaluations, card.extra_evaluations.get(request.sampler, 0)),
        "clip_skip": (request.clip_skip, card.max_clip_skip),
        "label": (request.label or 0, max(0, len(card.labels) - 1)),
    }
    for name, (value, limit) in limits.items():
        if value > limit:
            raise RecordError(f"{name} of the request is {value} (allowed for {card.name}: up to {limit})")
    if request.guidance_embedded != card.guidance_embedded:
        raise RecordError(f"guidance_embedded of the request is {request.guidance_embedded}, not that of {card.name}")
    if request.image_guidance_scale is not None and not card.image_guidance:
        scale = request.image_guidance_scale
        raise RecordError(f"image_guidance_scale of the request is {scale}, but {card.name} takes no input image")
    _check_inputs(request, card)
    if request.model != card.name:
        raise RecordError(f"the request is for the model {request.model!r:.60} (allowed in this queue: {card.name})")


def _check_inputs(request: SamplingRequest, card: ModelCard) -> None:
    """Check the prompt, the adapters and the size."""
    for name in ("prompt", "negative_prompt", "width", "height", "emphasis", "image", "mask"):
        if getattr(request, name) not in (None, False) and name not in card.inputs:
            raise RecordError(f"{name} of the request was given, but {card.name} takes none")
    is_given = request.image is not None or (request.task == "score" and request.x_t is not None)
    if request.task != "generate" and (not is_given or card.pictures != "start"):
        raise RecordError(f"the {request.task} request has no image, or {card.name} starts from none")
    if request.mask is not None and request.image is None:
        raise RecordError("mask of the request was given without an image")
    for lora in request.loras:
        served = card.lora_digest(lora.name)
        if served is None:
            raise RecordError(f"loras of the request names {lora.name!r:.60}, which {card.name} does not offer here")
        if lora.digest != served:
            raise RecordError(
                f"the adapter {lora.name!r:.60} has changed since the job was accepted (digest {lora.digest}; here "
                f"{served})"
            )
    for control in request.controls:
        offered = card.control(control.name)
        if offered is None:
            name = f"{control.name!r:.60}"
            raise RecordError(f"controls of the request names {name}, which {card.name} does not offer here")
        if control.digest != offered.digest:
            raise RecordError(
                f"the ControlNet {control.name!r:.60} has changed since the job was accepted (digest {control.digest}; "
                f"here {offered.digest})"
            )
    width, height = request.width or card.width, request.height or card.height
    for name, side in (("width", request.width), ("height", request.height)):
        if side is not None and not card.takes_side(side):
            raise RecordError(f"{name} of the request is {side} (allowed: multiples of {card.size_multiple})")
    if card.max_pixels is not None and width * height > card.max_pixels:
        raise RecordError(f"the request has {width}×{height} pixels (allowed for {card.name}: {card.max_pixels})")
