"""`/v1/images/…` and `/v1/models`, for programs that were written for the OpenAI API.

A request is translated to a `POST /generate` body and submitted as one. Options of OpenAI's that have no meaning here
are ignored where that is harmless, and refused where the client would miss their effect.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from denoised.app.admission.submission import submit
from denoised.app.admission.validation import choose_card
from denoised.app.compat.openai.errors import PREFIX
from denoised.app.compat.openai.image_stream import EDIT, GENERATION, ImageStream
from denoised.app.compat.openai.openai_schemas import (
    EditRequest,
    ImageData,
    ImagesRequest,
    ImagesResponse,
    ModelEntries,
    ModelEntry,
    OpenAIError,
    PicturesRequest,
    VariationRequest,
)
from denoised.app.compat.openai.translation import translate, translate_edit, translate_variation
from denoised.app.http.errors import InvalidRequest, NotFound
from denoised.app.http.headers import IdempotencyKey, job_location
from denoised.app.http.requests.form_body import FormRoute
from denoised.app.http.requests.json_body import JsonRoute
from denoised.app.http.validation_errors import format_value
from denoised.app.job_access.picture_response import picture_response
from denoised.app.job_access.waiting import CLIENT_CLOSED_REQUEST, require_pictures, wait_for_job
from denoised.app.services import Owner, Services, Serving
from denoised.jobs.record import JobRecord, image_url
from denoised.jobs.request import RequestFields
from denoised.jobs.store.store import Outcome
from denoised.model.serving.card import ModelCard

Translate = Callable[[ModelCard], RequestFields]

router = APIRouter(prefix=PREFIX, tags=["openai"], route_class=JsonRoute)
form_router = APIRouter(tags=["openai"], route_class=FormRoute)

_ERROR: dict[str, Any] = {"model": OpenAIError}
IMAGE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ImagesResponse,
        "description": "The pictures; with `stream`, one event for each partial image and one at the end.",
        "content": {"text/event-stream": {}},
    },
    400: {**_ERROR, "description": "Names the invalid field; for a prompt, lists the model's labels."},
    404: {**_ERROR, "description": "No such model."},
    409: {**_ERROR, "description": "The job was canceled."},
    429: {**_ERROR, "description": "The queue is full; see `Retry-After`."},
    500: {**_ERROR, "description": "The job failed; `code` names the cause."},
    503: {**_ERROR, "description": "No worker serves the model, Redis is away, or the server is restarting."},
    504: {**_ERROR, "description": "Not ready in time; the job that the message names continues."},
    507: {**_ERROR, "description": "Redis is out of memory."},
}
MODEL_RESPONSES: dict[int | str, dict[str, Any]] = {404: {**_ERROR, "description": "No live worker serves it."}}


@router.post(
    "/images/generations", responses=IMAGE_RESPONSES, response_model=ImagesResponse, summary="Pictures for a prompt"
)
async def generations(
    body: ImagesRequest,
    request: Request,
    services: Serving,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """As in the OpenAI API; for a model of labels, the prompt names one of them. If you disconnect early, the job is
    canceled, unless you sent an Idempotency-Key."""
    return await _respond(body, partial(translate, body), request, services, owner, idempotency_key)


async def _respond(
    body: PicturesRequest,
    translate: Translate,
    request: Request,
    services: Services,
    owner: str,
    idempotency_key: str | None,
    kind: str = GENERATION,
) -> Response:
    """Submit a request and wait for its pictures. translate: blocking; the same request for a model's card."""
    cancel = idempotency_key is None
    if body.stream:
        record = await run_in_threadpool(_submit, services, body.model, translate, owner, idempotency_key)
        slot = services.streams.open(owner)
        return ImageStream(services, record, slot, body.partial_images or 0, _headers(record), kind, cancel=cancel)
    with services.streams.open(owner):
        record = await run_in_threadpool(_submit, services, body.model, translate, owner, idempotency_key)
        base_url = str(request.base_url).rstrip("/") if body.response_format == "url" else None
        pictures = record.request.n if base_url is None else 0
        outcome = await wait_for_job(services, request, record, None, pictures=pictures, cancel=cancel)
    if outcome is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    require_pictures(outcome.record)
    return JSONResponse(_images(outcome, base_url).model_dump(exclude_none=True), headers=_headers(record))


@form_router.post("/images/edits", responses=IMAGE_RESPONSES, response_model=ImagesResponse, summary="Edit a picture")
async def edits(
    body: EditRequest,
    request: Request,
    services: Serving,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """As in the OpenAI API, as a form: the part that is transparent in `mask`, or without one in `image`, is made anew;
    an opaque picture is redrawn as a whole."""
    translate = partial(_edit, body, services)
    return await _respond(body, translate, request, services, owner, idempotency_key, EDIT)


@form_router.post(
    "/images/variations", responses=IMAGE_RESPONSES, response_model=ImagesResponse, summary="Variations of a picture"
)
async def variations(
    body: VariationRequest,
    request: Request,
    services: Serving,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """As in the OpenAI API, as a form: the picture redrawn without a prompt."""
    return await _respond(body, partial(translate_variation, body), request, services, owner, idempotency_key)


@router.get("/models", response_model=ModelEntries, summary="Models that are served now, in the OpenAI format")
def list_models(services: Serving) -> Response:
    """In the order of `GET /models`."""
    entries = [ModelEntry(id=card.name) for card in services.catalog.cards()]
    return JSONResponse(ModelEntries(data=entries).model_dump())


@router.get("/models/{model}", response_model=ModelEntry, responses=MODEL_RESPONSES, summary="A model")
def get_model(model: str, services: Serving) -> Response:
    """404 when no live worker serves it."""
    if model not in {card.name for card in services.catalog.cards()}:
        raise _model_not_found(f"no live worker serves a model {format_value(model)}")
    return JSONResponse(ModelEntry(id=model).model_dump())


def _edit(body: EditRequest, services: Services, card: ModelCard) -> RequestFields:
    return translate_edit(body, card, services)


def _submit(services: Services, model: str | None, translate: Translate, owner: str, key: str | None) -> JobRecord:
    """Submit the translated request. Blocking.

    Raises:
        Problem: as `submit`; an unknown model is a 404.
    """
    try:
        fleet = services.catalog.fleet()
        card = choose_card(model, fleet.cards, fleet.known)
    except InvalidRequest as error:
        raise _model_not_found(error.detail) from error
    try:
        record, _ = submit(services, translate(card), owner, key)
    except InvalidRequest as error:
        raise _of_size(error) from error
    return record


def _of_size(error: InvalidRequest) -> InvalidRequest:
    """An error of width or height, which are one field here."""
    errors = [(each["field"], each["message"]) for each in error.extra["errors"]]
    return InvalidRequest([("size" if field in ("width", "height") else field, text) for field, text in errors])


def _images(outcome: Outcome, base_url: str | None) -> ImagesResponse:
    """base_url: return URLs below it; None = return the pictures themselves."""
    record = outcome.record
    data = [
        ImageData(
            seed=image.seed,
            b64_json=_base64(outcome, image.index) if base_url is None else None,
            url=None if base_url is None else base_url + image_url(record.id, image.index),
        )
        for image in record.images
    ]
    first = record.images[0]
    size = f"{first.width}x{first.height}"
    return ImagesResponse(created=int(record.created_at), data=data, output_format=record.request.format, size=size)


def _base64(outcome: Outcome, index: int) -> str:
    return base64.b64encode(picture_response(outcome, index).body).decode()


def _headers(record: JobRecord) -> dict[str, str]:
    return {**job_location(record), "X-Job-Id": record.id}


def _model_not_found(message: str) -> NotFound:
    return NotFound(message, param="model", code="model_not_found")


router.include_router(form_router)
