"""`/v1/images/generations` and `/v1/models`: what programs written for the OpenAI API call.

A request becomes a `POST /generate` body, and goes the way of one. What of OpenAI's own options has no meaning here is
taken where it does no harm and refused where its effect would be missed.
"""

from __future__ import annotations

import base64
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from denoised.app.admission.submission import submit
from denoised.app.admission.validation import choose_card
from denoised.app.compat.openai.errors import FOLDER
from denoised.app.compat.openai.objects import ImageData, ImagesAnswer, ImagesRequest, ModelEntries, ModelEntry, V1Error
from denoised.app.compat.openai.prompts import label_of
from denoised.app.compat.openai.streaming import ImageStream
from denoised.app.http.errors import InvalidRequest, NotFound, shown
from denoised.app.routes.generate import CLIENT_GONE, IdempotencyKey, at_its_end, check_made, location
from denoised.app.routes.jobs import picture_of
from denoised.app.services import Owner, Services, Serving
from denoised.jobs.record import JobRecord, image_url
from denoised.jobs.request import RequestFields
from denoised.jobs.store import Outcome
from denoised.model.serving.card import ModelCard

router = APIRouter(prefix=FOLDER, tags=["openai"])

_ERROR: dict[str, Any] = {"model": V1Error}
IMAGES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ImagesAnswer,
        "description": "The pictures; with `stream`, one event for each partial image and one at the end.",
        "content": {"text/event-stream": {}},
    },
    400: {**_ERROR, "description": "Names the field that is wrong; for a prompt, the labels that there are."},
    404: {**_ERROR, "description": "There is no such model."},
    409: {**_ERROR, "description": "The job was canceled."},
    429: {**_ERROR, "description": "Too much work waits; see `Retry-After`."},
    500: {**_ERROR, "description": "The job failed; `code` says how."},
    503: {**_ERROR, "description": "No worker serves the model, Redis is away, or the server is restarting."},
    504: {**_ERROR, "description": "Not ready in time; the job that the message names goes on."},
    507: {**_ERROR, "description": "Redis has no memory for more."},
}
MODEL: dict[int | str, dict[str, Any]] = {404: {**_ERROR, "description": "No live worker serves it."}}


@router.post("/images/generations", responses=IMAGES, response_model=ImagesAnswer, summary="Pictures for a prompt")
async def generations(
    body: ImagesRequest,
    request: Request,
    services: Serving,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """As OpenAI's. The prompt names one of the model's labels; a client that goes away takes its job with it, unless it
    named an Idempotency-Key."""
    record = await run_in_threadpool(_accept, services, body, owner, idempotency_key)
    alone = idempotency_key is None
    if body.stream:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **_headers(record)}
        return ImageStream(services, record, body.partial_images or 0, headers, cancel=alone)
    server = str(request.base_url).rstrip("/") if body.response_format == "url" else None
    pictures = record.request.n if server is None else 0
    ended = await at_its_end(services, request, record, None, pictures=pictures, cancel=alone)
    if ended is None:
        return Response(status_code=CLIENT_GONE)
    check_made(ended.record)
    return JSONResponse(_answer(ended, server).model_dump(exclude_none=True), headers=_headers(record))


@router.get("/models", response_model=ModelEntries, summary="Models that are served now, as a list of OpenAI's")
def models(services: Serving) -> Response:
    """The first is the default."""
    entries = [ModelEntry(id=card.name) for card in services.catalog.cards()]
    return JSONResponse(ModelEntries(data=entries).model_dump())


@router.get("/models/{model}", response_model=ModelEntry, responses=MODEL, summary="One of them")
def model(model: str, services: Serving) -> Response:
    """404 where no live worker serves it."""
    if model not in {card.name for card in services.catalog.cards()}:
        raise _unknown(f"no live worker serves a model {shown(model)}")
    return JSONResponse(ModelEntry(id=model).model_dump())


def _accept(services: Services, body: ImagesRequest, owner: str, key: str | None) -> JobRecord:
    """Blocking.

    Raises:
        Problem: as `submit`.
    """
    try:
        fleet = services.catalog.fleet()
        card = choose_card(body.model, fleet.cards, fleet.known)
    except InvalidRequest as error:
        raise _unknown(error.detail) from error
    record, _ = submit(services, translated(body, card), owner, key)
    return record


def translated(body: ImagesRequest, card: ModelCard) -> RequestFields:
    """The same request in the fields of `POST /generate`.

    Raises:
        InvalidRequest: for what only the model's card shows to be wrong, or two fields that do not go together.
    """
    errors = list(_discord(body, card))
    if errors:
        raise InvalidRequest(errors)
    steps = body.steps or card.default.steps
    return {
        "model": card.name,
        "label": label_of(body.prompt, card),
        "n": body.n,
        "seed": body.seed,
        "steps": body.steps,
        "guidance_scale": body.guidance_scale,
        "format": body.output_format,
        "preview_every": max(1, steps // (body.partial_images + 1)) if body.partial_images else 0,
    }


def _discord(body: ImagesRequest, card: ModelCard) -> list[tuple[str, str]]:
    errors = []
    there = f"{card.width}x{card.height}"
    if body.size not in (None, "auto", there):
        errors.append(("size", f"{shown(body.size)} is no size of {card.name} (allowed: auto, {there})"))
    if body.stream and (body.n or 1) > 1:
        errors.append(("n", f"{body.n} was given, but a stream has one picture (allowed with stream: 1)"))
    if body.stream and body.response_format == "url":
        errors.append(("response_format", '"url" was given, but a stream carries pictures (allowed: "b64_json")'))
    if body.partial_images and not body.stream:
        errors.append(("partial_images", f"{body.partial_images} was given without stream (allowed without: 0)"))
    return errors


def _answer(ended: Outcome, server: str | None) -> ImagesAnswer:
    """server: whose addresses of the pictures are given, None = the pictures themselves."""
    record = ended.record
    data = [
        ImageData(
            seed=image.seed,
            b64_json=_base64(ended, image.index) if server is None else None,
            url=None if server is None else server + image_url(record.id, image.index),
        )
        for image in record.images
    ]
    first = record.images[0]
    size = f"{first.width}x{first.height}"
    return ImagesAnswer(created=int(record.created_at), data=data, output_format=record.request.format, size=size)


def _base64(ended: Outcome, index: int) -> str:
    return base64.b64encode(picture_of(ended, index).body).decode()


def _headers(record: JobRecord) -> dict[str, str]:
    return {**location(record), "X-Job-Id": record.id}


def _unknown(message: str) -> NotFound:
    return NotFound(message, param="model", code="model_not_found")
