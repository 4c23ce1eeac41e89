"""The responses with a job, or with its picture, once the client has waited for it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from denoised.app.http.errors import InvalidRequest
from denoised.app.http.headers import job_location
from denoised.app.http.job_object import job_object
from denoised.app.http.requests.negotiation import preference_applied
from denoised.app.http.schemas import JobObject, ProblemObject
from denoised.app.http.validation_errors import format_value
from denoised.app.job_access.picture_response import picture_response
from denoised.app.job_access.waiting import (
    CLIENT_CLOSED_REQUEST,
    job_gone,
    require_pictures,
    revoked_while_waiting,
    wait_for_job,
)
from denoised.app.services import Services
from denoised.app.streaming.event_listener import KeyRevoked, ServerClosing
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.request_choices import Format

F = TypeVar("F", bound=Mapping[str, Any])

_PROBLEM: dict[str, Any] = {"model": ProblemObject, "content": {"application/problem+json": {}}}
JOB_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": JobObject,
        "description": "The finished job (`Prefer: wait=S`), or the picture itself (`Accept: image/…`).",
        "content": {"image/png": {}, "image/webp": {}, "image/jpeg": {}},
    },
    202: {"model": JobObject, "description": "Accepted; follow `links.events`."},
    406: {**_PROBLEM, "description": "`Accept` names neither JSON nor a picture format."},
    422: {**_PROBLEM, "description": "Names each invalid field, its value and the limit."},
    429: {**_PROBLEM, "description": "The queue is full; see `Retry-After`."},
    500: {**_PROBLEM, "description": "The client waited for a picture and the job failed; `code` names the cause."},
    503: {**_PROBLEM, "description": "No worker serves the model, Redis is away, or the server is restarting."},
    504: {**_PROBLEM, "description": "The picture is not ready in time; `job` names the job, which continues."},
    507: {**_PROBLEM, "description": "Redis is out of memory."},
}


def single_picture_fields(fields: F, formats: Sequence[Format]) -> F:
    """The request for one picture in a format that `Accept` names. formats: the preferred one first."""
    n, format = fields.get("n", 1), fields.get("format", formats[0])
    if n != 1:
        raise InvalidRequest([("n", f"{n} was given, but Accept asks for one picture (allowed: 1)")])
    if format not in formats:
        accepted = " or ".join(f"image/{format}" for format in formats)
        raise InvalidRequest([("format", f"{format_value(format)} was given, but Accept asks for {accepted}")])
    return cast(F, {**fields, "format": format})


async def respond_after_wait(services: Services, record: JobRecord, estimate: QueueEstimate, wait: float) -> Response:
    """The job when it has ended, or as it is after `wait` seconds, or as it was when Redis stopped answering."""
    if wait > 0 and not record.terminal:
        with contextlib.suppress(ServerClosing, StoreUnavailable):
            try:
                outcome = await services.relay.wait_for_end(record.id, wait)
            except KeyRevoked as error:
                raise revoked_while_waiting(record.id) from error
            if outcome is None:
                raise job_gone(record.id)
            record = outcome.record
            estimate = await run_in_threadpool(lambda: services.queue.estimate(record, services.catalog.workers()))
    headers = {**job_location(record), **preference_applied(wait)}
    return JSONResponse(job_object(record, estimate), 200 if record.terminal else 202, headers=headers)


async def respond_with_picture(
    services: Services, request: Request, record: JobRecord, wait: float | None, *, cancel: bool
) -> Response:
    outcome = await wait_for_job(services, request, record, wait, pictures=1, cancel=cancel)
    if outcome is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    require_pictures(outcome.record)
    response = picture_response(outcome, 0)
    response.headers["X-Job-Id"] = record.id
    response.headers["X-Seed"] = str(record.request.seed)
    response.headers.update(preference_applied(wait))
    return response
