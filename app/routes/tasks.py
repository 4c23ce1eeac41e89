"""`POST /noise`, `/score` and `/likelihood`: jobs that compute something of a picture."""

from __future__ import annotations

import contextlib
from typing import Annotated, cast

from fastapi import APIRouter, Header, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from denoised.app.admission.submission import submit
from denoised.app.http.headers import IdempotencyKey, job_location
from denoised.app.http.job_object import job_object
from denoised.app.http.requests.form_body import FormRoute
from denoised.app.http.requests.negotiation import Preference, asks_for_no_wait
from denoised.app.http.requests.task_body import LikelihoodRequest, NoiseRequest, ScoreRequest, TaskBody
from denoised.app.http.schemas import JobObject
from denoised.app.job_access.job_response import (
    JOB_RESPONSES,
    respond_after_wait,
    respond_with_picture,
    single_picture_fields,
)
from denoised.app.services import Owner, Services, Serving
from denoised.jobs.request import RequestFields

router = APIRouter(tags=["jobs"], route_class=FormRoute)

NOW = {**JOB_RESPONSES, 200: {"model": JobObject, "description": "The finished job, with `arrays` and `result`."}}
NOW |= {202: {"model": JobObject, "description": "Not finished in time, or `Prefer: respond-async`."}}
LATER = {**JOB_RESPONSES, 200: {"model": JobObject, "description": "The finished job (`Prefer: wait=S`)."}}
PICTURE = {**JOB_RESPONSES[200], "description": "The finished job, or the noisy picture (`Accept: image/…`)."}

Prefer = Annotated[
    str | None,
    Header(description="`wait=S`: respond within S seconds; `respond-async`: respond at once"),
]
Accept = Annotated[
    str | None, Header(description="`image/png`, `image/webp`, `image/jpeg` or `image/*`: the noisy picture itself")
]


@router.post("/noise", responses={**NOW, 200: PICTURE}, summary="Add noise to a picture")
async def noise(
    body: NoiseRequest,
    request: Request,
    services: Serving,
    owner: Owner,
    prefer: Prefer = None,
    accept: Accept = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """The forward process: x_t = α·x_0 + σ·ε of a picture x_0 at a timestep `t`, or at a noise level `sigma` = σ/α,
    with the noise of a seed. The job has the noisy pictures as `images` and x_t as an array. A model of latents adds
    the noise to the latents. The response waits for the job."""
    preference = Preference.parse({"prefer": prefer or "", "accept": accept or ""}, services.settings.max_wait)
    preference.check_acceptable()
    fields = body.fields()
    if not preference.pictures:
        return await _respond(services, owner, body, _wait(preference, prefer, services), idempotency_key)
    fields = single_picture_fields(fields, preference.pictures)
    with services.streams.open(owner):
        given = cast(RequestFields, fields)
        record, _ = await run_in_threadpool(lambda: submit(services, given, owner, idempotency_key, task="noise"))
        cancel = idempotency_key is None
        return await respond_with_picture(services, request, record, preference.wait, cancel=cancel)


@router.post("/score", responses=NOW, summary="The score of a picture")
async def score(
    body: ScoreRequest,
    services: Serving,
    owner: Owner,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """The model's score ∇ log p_t(x_t) = −ε̂/σ of a picture at a noise level, given a label or a prompt, with x̂_0 and
    ε̂. With a `seed`, its noise is added to the picture first, as `POST /noise` does; without one the picture is x_t
    itself. `x_t` gives the point as numbers instead: an .npy file of float32. The job has x̂_0 as its image. For a model
    of latents all arrays are of latents, and `result.space` says so. The response waits for the job."""
    preference = Preference.parse({"prefer": prefer or ""}, services.settings.max_wait)
    return await _respond(services, owner, body, _wait(preference, prefer, services), idempotency_key)


@router.post("/likelihood", status_code=202, responses=LATER, summary="The likelihood of a picture")
async def likelihood(
    body: LikelihoodRequest,
    services: Serving,
    owner: Owner,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue a job that estimates how many bits per dimension a picture takes under a model, given a label or a prompt:
    the `result` of the finished job has the mean of `probes` estimates and its standard error."""
    preference = Preference.parse({"prefer": prefer or ""}, services.settings.max_wait)
    return await _respond(services, owner, body, preference.wait, idempotency_key)


def _wait(preference: Preference, prefer: str | None, services: Services) -> float | None:
    """Seconds to wait where a response waits unless it is asked not to."""
    if asks_for_no_wait(prefer or ""):
        return None
    return services.settings.max_wait if preference.wait is None else preference.wait


async def _respond(services: Services, owner: str, body: TaskBody, wait: float | None, key: str | None) -> Response:
    """The job at once (202), or after at most `wait` seconds."""
    fields, task = cast(RequestFields, body.fields()), body.task
    with services.streams.open(owner) if wait is not None else contextlib.nullcontext():
        record, estimate = await run_in_threadpool(lambda: submit(services, fields, owner, key, task=task))
        if wait is not None:
            return await respond_after_wait(services, record, estimate, wait)
    return JSONResponse(job_object(record, estimate), 202, headers=job_location(record))
