"""Requests of the OpenAI Images API in the fields of `POST /generate`."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

from denoised.app.compat.openai.openai_schemas import EditRequest, ImagesRequest, PicturesRequest, VariationRequest
from denoised.app.compat.prompts import label_of
from denoised.app.http.errors import InvalidRequest
from denoised.app.http.validation_errors import format_value
from denoised.app.services import Services
from denoised.jobs.errors import PictureError
from denoised.jobs.picture_reading import mask_from_alpha
from denoised.jobs.request import MAX_PROMPT, RequestFields
from denoised.model.serving.card import ModelCard

SIZE = re.compile("([0-9]{1,5})x([0-9]{1,5})")


def translate(body: ImagesRequest, card: ModelCard) -> RequestFields:
    """The same request in the fields of `POST /generate`.

    Raises:
        InvalidRequest: when a field does not fit the model or another field.
    """
    _refuse([*_errors(body, card), *_prompt_errors(body.prompt, card)])
    return {**_shared(body, card), **_prompt(body.prompt, card)}


def translate_edit(body: EditRequest, card: ModelCard, services: Services) -> RequestFields:
    """The same edit in the fields of `POST /generate`. Blocking, and slow.

    Without a mask, the transparent part of the picture is made anew; of an opaque picture, all of it is redrawn.

    Raises:
        InvalidRequest: when a field does not fit the model or another field, or a file cannot be read.
    """
    _refuse([*_errors(body, card), *_prompt_errors(body.prompt, card)])
    name = "image" if body.mask is None else "mask"
    with services.picture_slots.open():
        mask = _alpha(name, body.mask or body.image)
    if mask is None and body.mask is not None:
        raise InvalidRequest([("mask", "has no transparent part, which is what is made anew")])
    anew: RequestFields = {} if mask is None else {"mask": base64.b64encode(mask).decode()}
    if anew and body.strength is None:
        anew["strength"] = 1.0
    fields: RequestFields = {**_shared(body, card), **_prompt(body.prompt, card), "image": body.image, **anew}
    return fields if body.strength is None else {**fields, "strength": body.strength}


def translate_variation(body: VariationRequest, card: ModelCard) -> RequestFields:
    """The same request in the fields of `POST /generate`: the picture redrawn without a prompt.

    Raises:
        InvalidRequest: when a field does not fit the model or another field.
    """
    _refuse(list(_errors(body, card)))
    fields: RequestFields = {**_shared(body, card), "image": body.image}
    return fields if body.strength is None else {**fields, "strength": body.strength}


def _shared(body: PicturesRequest, card: ModelCard) -> RequestFields:
    steps = body.steps or card.default.steps
    width, height = _size(body.size) or (None, None)
    return {
        "model": card.name,
        "width": width if card.size_multiple else None,
        "height": height if card.size_multiple else None,
        "n": body.n,
        "seed": body.seed,
        "steps": body.steps,
        "guidance_scale": body.guidance_scale,
        "format": body.output_format,
        "preview_every": max(1, steps // (body.partial_images + 1)) if body.partial_images else 0,
    }


def _prompt(prompt: str, card: ModelCard) -> RequestFields:
    if card.prompts:
        return {"label": None, "prompt": prompt}
    return {"label": label_of(prompt, card), "prompt": None}


def _alpha(name: str, text: str) -> bytes | None:
    """The mask in the transparency of a file in base64; None if it is opaque."""
    try:
        return mask_from_alpha(base64.b64decode(text, validate=True))
    except (PictureError, ValueError) as error:
        raise InvalidRequest([(name, str(error))]) from error


def _size(text: str | None) -> tuple[int, int] | None:
    """The (width, height) of a text such as "512x768"; None for "auto" and for anything else."""
    sides = SIZE.fullmatch(text or "")
    return (int(sides[1]), int(sides[2])) if sides else None


def _refuse(errors: list[tuple[str, str]]) -> None:
    if errors:
        raise InvalidRequest(errors)


def _prompt_errors(prompt: str, card: ModelCard) -> Iterator[tuple[str, str]]:
    if card.prompts and len(prompt) > MAX_PROMPT:
        yield "prompt", f"{len(prompt)} characters were given (allowed: {MAX_PROMPT})"


def _errors(body: PicturesRequest, card: ModelCard) -> Iterator[tuple[str, str]]:
    size = f"{card.width}x{card.height}"
    if body.size not in (None, "auto", size) and not (card.size_multiple and _size(body.size)):
        multiples = f", or other multiples of {card.size_multiple}" if card.size_multiple else ""
        yield "size", f"{format_value(body.size)} is not a size of {card.name} (allowed: auto, {size}{multiples})"
    if body.stream and (body.n or 1) > 1:
        yield "n", f"{body.n} was given, but a stream has one picture (allowed with stream: 1)"
    if body.stream and body.response_format == "url":
        yield "response_format", '"url" was given, but a stream carries pictures (allowed: "b64_json")'
    if body.partial_images and not body.stream:
        yield "partial_images", f"{body.partial_images} was given without stream (allowed without: 0)"
