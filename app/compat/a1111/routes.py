"""`/sdapi/v1/txt2img`, `img2img`, `progress` and `interrupt`, for programs written for AUTOMATIC1111's web UI.

A request is translated to a `POST /generate` body and submitted as one. What the web UI does and this server does not
is refused by its name when a request switches it on.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from denoised.app.admission.submission import submit
from denoised.app.admission.validation import choose_card
from denoised.app.compat.a1111 import caller_jobs
from denoised.app.compat.a1111.a1111_schemas import (
    Img2ImgRequest,
    ProgressResponse,
    Txt2ImgRequest,
    Txt2ImgResponse,
    WebUIError,
)
from denoised.app.compat.a1111.checkpoints import OPTION, selected_model
from denoised.app.compat.a1111.errors import PREFIX
from denoised.app.compat.a1111.generation_info import echoed_parameters, generation_info
from denoised.app.compat.a1111.img2img import translate_img2img
from denoised.app.compat.a1111.translation import renamed, translate
from denoised.app.http.errors import InvalidRequest
from denoised.app.http.headers import job_location
from denoised.app.http.requests.json_body import JsonRoute
from denoised.app.job_access.picture_response import picture_response
from denoised.app.job_access.waiting import CLIENT_CLOSED_REQUEST, require_pictures, wait_for_job
from denoised.app.services import Owner, Services, Serving
from denoised.jobs.record import JobRecord
from denoised.jobs.request import RequestFields
from denoised.jobs.store.store import Outcome
from denoised.model.serving.card import ModelCard

Translate = Callable[[ModelCard], RequestFields]

router = APIRouter(prefix=f"{PREFIX}/v1", tags=["a1111"], route_class=JsonRoute)

_ERROR: dict[str, Any] = {"model": WebUIError}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Txt2ImgResponse, "description": "The pictures."},
    409: {**_ERROR, "description": "The job was interrupted or canceled."},
    422: {**_ERROR, "description": "Names each invalid field, and what is asked for and not served."},
    429: {**_ERROR, "description": "The queue is full; see `Retry-After`."},
    500: {**_ERROR, "description": "The job failed; `error` names the cause."},
    503: {**_ERROR, "description": "No worker serves the model, Redis is away, or the server is restarting."},
    504: {**_ERROR, "description": "Not ready in time; the job that the message names continues."},
    507: {**_ERROR, "description": "Redis is out of memory."},
}


@router.post("/txt2img", responses=RESPONSES, response_model=Txt2ImgResponse, summary="Pictures for a prompt")
async def txt2img(body: Txt2ImgRequest, request: Request, services: Serving, owner: Owner) -> Response:
    """As in AUTOMATIC1111's web UI; for a model of labels, the prompt names one of them. If you disconnect early, the
    job is canceled."""
    return await _respond(body, partial(translate, body), request, services, owner)


@router.post("/img2img", responses=RESPONSES, response_model=Txt2ImgResponse, summary="Pictures from a picture")
async def img2img(body: Img2ImgRequest, request: Request, services: Serving, owner: Owner) -> Response:
    """As in AUTOMATIC1111's web UI. If you disconnect early, the job is canceled."""
    return await _respond(body, partial(_translate_img2img, body, services), request, services, owner)


def _translate_img2img(body: Img2ImgRequest, services: Services, card: ModelCard) -> RequestFields:
    return translate_img2img(body, card, services)


async def _respond(
    body: Txt2ImgRequest, translate: Translate, request: Request, services: Services, owner: str
) -> Response:
    """Submit a request and wait for its pictures. translate: blocking; the same request for a model's card."""
    with services.streams.open(owner):
        record = await run_in_threadpool(_submit, services, body, translate, owner)
        pictures = 0 if body.send_images is False else record.request.n
        outcome = await wait_for_job(services, request, record, None, pictures=pictures, cancel=True)
    if outcome is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    require_pictures(outcome.record)
    content = {
        "images": [_base64(outcome, index) for index in range(pictures)],
        "parameters": echoed_parameters(body, outcome.record),
        "info": json.dumps(generation_info(body, outcome.record)),
    }
    headers = {**job_location(record), "X-Job-Id": record.id}
    # ASCII, because the request may contain unpaired surrogates.
    return Response(json.dumps(content), media_type="application/json", headers=headers)


@router.get("/progress", response_model=ProgressResponse, summary="Progress of your job")
def get_progress(
    services: Serving,
    owner: Owner,
    skip_current_image: Annotated[bool, Query(description="leave out the preview")] = False,
) -> Response:
    """Of several jobs, the oldest that runs. Jobs of other callers, and those that came through other routes, do not
    count."""
    found = caller_jobs.read_progress(services, owner, with_image=not skip_current_image)
    return JSONResponse(found.model_dump())


@router.post("/interrupt", summary="Cancel your jobs of this API")
def interrupt(services: Serving, owner: Owner) -> Response:
    """Cancels those of your jobs that came through this API and have not ended. Other callers' jobs continue."""
    caller_jobs.cancel_unfinished(services, owner)
    return JSONResponse({})


def _submit(services: Services, body: Txt2ImgRequest, translate: Translate, owner: str) -> JobRecord:
    """Submit the translated request. Blocking.

    Raises:
        Problem: as `submit`; errors name the web UI's fields.
    """
    checkpoint = (body.override_settings or {}).get(OPTION)
    model = selected_model(services, owner, checkpoint if isinstance(checkpoint, str) else None)
    fleet = services.catalog.fleet()
    try:
        card = choose_card(model, fleet.cards, fleet.known)
    except InvalidRequest as error:
        message = error.extra["errors"][0]["message"]
        raise InvalidRequest([(f"override_settings.{OPTION}", message)]) from error
    fields = translate(card)
    try:
        return submit(services, fields, owner, api=caller_jobs.API)[0]
    except InvalidRequest as error:
        raise renamed(error, body) from error


def _base64(outcome: Outcome, index: int) -> str:
    return base64.b64encode(picture_response(outcome, index).body).decode()
