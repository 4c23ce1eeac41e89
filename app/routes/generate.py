"""`POST /generate`: accept a job, and wait for it when the client asks for that."""

from __future__ import annotations

import contextlib
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from denoised.app.admission.submission import submit
from denoised.app.http.headers import IdempotencyKey, job_location
from denoised.app.http.job_object import job_object
from denoised.app.http.requests.form_body import FormRoute
from denoised.app.http.requests.negotiation import Preference
from denoised.app.http.requests.request_body import GenerateRequest
from denoised.app.job_access.job_response import (
    JOB_RESPONSES,
    respond_after_wait,
    respond_with_picture,
    single_picture_fields,
)
from denoised.app.services import Owner, Serving

router = APIRouter(tags=["jobs"], route_class=FormRoute)


@router.post("/generate", status_code=202, responses=JOB_RESPONSES, summary="Generate pictures")
async def generate(
    body: GenerateRequest,
    request: Request,
    services: Serving,
    owner: Owner,
    prefer: Annotated[
        str | None,
        Header(description="`wait=S`: respond when the job has ended, or after S seconds; `wait`: the longest wait"),
    ] = None,
    accept: Annotated[
        str | None, Header(description="`image/png`, `image/webp`, `image/jpeg` or `image/*`: the picture itself")
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue one sampling job. The response depends on the request headers: the job object at once (202), the finished
    job (`Prefer: wait=S`), or the picture itself (`Accept: image/png`). If you disconnect before the picture is sent,
    the job is canceled, unless you sent an Idempotency-Key."""
    preference = Preference.parse({"prefer": prefer or "", "accept": accept or ""}, services.settings.max_wait)
    preference.check_acceptable()
    fields = body.fields()
    if preference.pictures:
        fields = single_picture_fields(fields, preference.pictures)
    waits = preference.pictures or preference.wait is not None
    with services.streams.open(owner) if waits else contextlib.nullcontext():
        record, estimate = await run_in_threadpool(submit, services, fields, owner, idempotency_key)
        if preference.pictures:
            cancel = idempotency_key is None
            return await respond_with_picture(services, request, record, preference.wait, cancel=cancel)
        if preference.wait is not None:
            return await respond_after_wait(services, record, estimate, preference.wait)
    return JSONResponse(job_object(record, estimate), 202, headers=job_location(record))
