"""`POST /generate`: accept a job, and wait for it where the client asks for that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from denoised.app.admission.submission import submit
from denoised.app.http.errors import Conflict, InvalidRequest, Problem, Unavailable, WaitedTooLong, shown
from denoised.app.http.job_object import job_object
from denoised.app.http.negotiation import Preference, applied
from denoised.app.http.request_body import GenerateRequest
from denoised.app.http.schemas import JobObject, ProblemObject
from denoised.app.routes.jobs import cancel_job, picture_of
from denoised.app.services import Owner, Services, Serving
from denoised.app.streaming.relay import Closing
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.request import Format, RequestFields
from denoised.jobs.store import Outcome

router = APIRouter(tags=["jobs"])

CLIENT_GONE = 499  # nobody reads it; nginx's number for the log

_PROBLEM: dict[str, Any] = {"model": ProblemObject, "content": {"application/problem+json": {}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": JobObject,
        "description": "The finished job (`Prefer: wait=S`), or the picture itself (`Accept: image/…`).",
        "content": {"image/png": {}, "image/webp": {}, "image/jpeg": {}},
    },
    202: {"model": JobObject, "description": "Accepted; follow `links.events`."},
    422: {**_PROBLEM, "description": "Names each field that is wrong, its value and the limit."},
    429: {**_PROBLEM, "description": "Too much work waits; see `Retry-After`."},
    500: {**_PROBLEM, "description": "The job failed whose picture was waited for; `code` says how."},
    503: {**_PROBLEM, "description": "No worker serves the model, Redis is away, or the server is restarting."},
    504: {**_PROBLEM, "description": "The picture is not ready in time; `job` names the job, which goes on."},
    507: {**_PROBLEM, "description": "Redis has no memory for more."},
}


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="the same key and body: the same job, for 24 h",
    ),
]


class JobFailed(Problem):
    """The job that a client waited for ended without its picture."""

    status = 500


@router.post("/generate", status_code=202, responses=RESPONSES, summary="Sample pictures")
async def generate(
    body: GenerateRequest,
    request: Request,
    services: Serving,
    owner: Owner,
    prefer: Annotated[
        str | None,
        Header(description="wait=S: answer when the job is done, or after S seconds; wait: after as long as may be"),
    ] = None,
    accept: Annotated[
        str | None, Header(description="image/png, image/webp, image/jpeg or image/*: the picture itself")
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue one sampling job. What comes back depends on what is asked for: the job object at once
    (202), the finished job (`Prefer: wait=S`), or the picture (`Accept: image/png`)."""
    wanted = Preference.of({"prefer": prefer or "", "accept": accept or ""}, services.settings.max_wait)
    fields = body.fields()
    if wanted.pictures:
        fields = _for_picture(fields, wanted.pictures)
    record, outlook = await run_in_threadpool(submit, services, fields, owner, idempotency_key)
    if wanted.pictures:
        return await _picture(services, request, record, wanted.wait, cancel=idempotency_key is None)
    if wanted.wait is None:
        return JSONResponse(job_object(record, outlook), 202, headers=location(record))
    return await _waited(services, record, outlook, wanted.wait)


def _for_picture(fields: RequestFields, formats: Sequence[Format]) -> RequestFields:
    """The request for one picture in a format that `Accept` asks for. formats: the preferred one first."""
    n, format = fields.get("n", 1), fields.get("format", formats[0])
    if n != 1:
        raise InvalidRequest([("n", f"{n} was given, but Accept asks for one picture (allowed: 1)")])
    if format not in formats:
        asked = " or ".join(f"image/{format}" for format in formats)
        raise InvalidRequest([("format", f"{shown(format)} was given, but Accept asks for {asked}")])
    return {**fields, "format": format}


async def _waited(services: Services, record: JobRecord, outlook: QueueEstimate, wait: float) -> Response:
    """The job when it is over or the time is up; who has no time is told what is known already."""
    if wait > 0 and not record.terminal:
        with contextlib.suppress(Closing):
            after = await services.relay.wait_for_end(record.id, wait)
            record = after.record if after is not None else record
        outlook = await run_in_threadpool(lambda: services.queue.outlook(record, services.catalog.workers()))
    headers = {**location(record), **applied(wait)}
    return JSONResponse(job_object(record, outlook), 200 if record.terminal else 202, headers=headers)


async def _picture(
    services: Services, request: Request, record: JobRecord, wait: float | None, *, cancel: bool
) -> Response:
    """Wait and answer the picture."""
    ended = await at_its_end(services, request, record, wait, pictures=1, cancel=cancel)
    if ended is None:
        return Response(status_code=CLIENT_GONE)
    check_made(ended.record)
    response = picture_of(ended, 0)
    response.headers["X-Job-Id"] = record.id
    response.headers["X-Seed"] = str(record.request.seed)
    response.headers.update(applied(wait))
    return response


async def at_its_end(
    services: Services, request: Request, record: JobRecord, wait: float | None, *, pictures: int, cancel: bool
) -> Outcome | None:
    """The job when it is over, with its first so many pictures; None when the client has gone away before that.

    wait: seconds, None = as long as a client may wait. cancel: a client that goes away takes its job with it.

    Raises:
        WaitedTooLong: when the job is not over in time.
        Unavailable: when the server is shutting down.
    """
    seconds = services.settings.max_wait if wait is None else wait
    for_end = services.relay.wait_for_end(record.id, 0.0 if record.terminal else seconds, pictures)
    waiting = asyncio.ensure_future(for_end)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            if cancel:
                await run_in_threadpool(cancel_job, services, record)
            return None
        after = waiting.result() or Outcome(record)
    except Closing as error:
        detail, soon = f"the server is restarting; job {record.id} goes on", {"Retry-After": "2"}
        raise Unavailable(detail, headers=soon, job=record.id) from error
    finally:
        for task in (waiting, leaving):
            task.cancel()
        await asyncio.gather(waiting, leaving, return_exceptions=True)
    if not after.record.terminal:
        where = job_object(record)["links"]["self"]
        detail = f"job {record.id} is not done after {seconds:g} s; it goes on, see {where}"
        raise WaitedTooLong(detail, headers={**location(record), **applied(wait)}, job=record.id)
    return after


def check_made(record: JobRecord) -> None:
    """Nothing, when a job that is over has made its pictures.

    Raises:
        Conflict: when it was canceled.
        JobFailed: when it failed.
    """
    if record.status == "canceled":
        raise Conflict(f"job {record.id} was canceled", job=record.id)
    if record.status == "failed":
        error = dict(record.error or {})
        raise JobFailed(f"job {record.id} failed: {error.get('message')}", job=record.id, code=error.get("code"))


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def location(record: JobRecord) -> dict[str, str]:
    """The header that says where a job is."""
    return {"Location": f"/jobs/{record.id}"}
