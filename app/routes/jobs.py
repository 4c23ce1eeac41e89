"""Jobs that were accepted: look at one, list them, cancel one, fetch its pictures."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query
from pydantic import AfterValidator
from starlette.responses import JSONResponse, Response

from denoised.app.http.errors import Conflict, NotFound, shown
from denoised.app.http.job_object import job_object
from denoised.app.http.negotiation import names_tag
from denoised.app.http.schemas import JobList, JobObject, ProblemObject
from denoised.app.services import Owner, Services, Serving
from denoised.jobs.job_listing import JobCursor
from denoised.jobs.record import JobRecord
from denoised.jobs.request import MEDIA_TYPES
from denoised.jobs.store import Outcome

router = APIRouter(prefix="/jobs", tags=["jobs"])

Status = Literal["queued", "running", "succeeded", "failed", "canceled"]

STRIDE, LOOKED_AT = 100, 1000  # jobs that are read at once, and in all, for a page of one status
CURSOR = r"^[0-9]{1,15}(\.[0-9]{1,15})?-[0-9A-Za-z]{1,64}$"

_PROBLEM: dict[str, Any] = {"model": ProblemObject, "content": {"application/problem+json": {}}}
_GONE: dict[int | str, dict[str, Any]] = {404: {**_PROBLEM, "description": "Unknown, expired, or another caller's."}}


def find(services: Services, job_id: str, owner: str) -> JobRecord:
    """A caller's job.

    Raises:
        NotFound: when it is unknown, expired or another caller's.
    """
    record = services.store.job(job_id) if job_id.isalnum() else None
    if record is None or record.owner != owner:
        raise NotFound(f"there is no job {shown(job_id)}")
    return record


def named_job(job_id: str, services: Serving, owner: Owner) -> JobRecord:
    """The job of a path. A dependency comes before the other parts of a request: 404, whatever is wrong with those."""
    return find(services, job_id, owner)


NamedJob = Annotated[JobRecord, Depends(named_job)]


def _cursor_of_ours(cursor: str | None) -> str | None:
    if cursor is not None and not re.fullmatch(CURSOR, cursor):
        raise ValueError("should be the next_cursor of the page before")
    return cursor


@router.get("", responses={200: {"model": JobList}}, summary="Your jobs, newest first")
def list_jobs(
    services: Serving,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[
        str | None,
        AfterValidator(_cursor_of_ours),
        Query(description="`next_cursor` of the page before", json_schema_extra={"pattern": CURSOR}),
    ] = None,
    status: Annotated[Status | None, Query(description="jobs of this status alone")] = None,
) -> Response:
    """A page of the caller's jobs. With `status` it may have fewer than `limit`, or none, and still not be the
    last: that is where `next_cursor` is null."""
    page, last = _page(services, owner, limit, status, _place(cursor) if cursor is not None else None)
    following = _cursor(last) if last is not None else None
    return JSONResponse({"jobs": [_shown(services, record) for record in page], "next_cursor": following})


@router.get("/{job_id}", responses={200: {"model": JobObject}, **_GONE}, summary="A job")
def get_job(record: NamedJob, services: Serving) -> Response:
    """The job as it stands."""
    return JSONResponse(_shown(services, record))


@router.delete(
    "/{job_id}",
    responses={
        200: {"model": JobObject, "description": "The job, canceled; repeating is harmless."},
        409: {**_PROBLEM, "description": "It had already succeeded or failed."},
        **_GONE,
    },
    summary="Cancel a job",
)
def delete_job(record: NamedJob, services: Serving) -> Response:
    """A queued job never starts; a running one leaves the batch before the next evaluation."""
    after = cancel_job(services, record)
    if after.status != "canceled":
        raise Conflict(f"job {after.id} has already {after.status}", job=after.id)
    return JSONResponse(job_object(after))


@router.get(
    "/{job_id}/images/{index}",
    responses={
        200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}, "description": "The bytes."},
        304: {"description": "`If-None-Match` names this picture."},
        **_GONE,
    },
    response_class=Response,
    summary="A picture",
)
def get_image(
    record: NamedJob, index: int, services: Serving, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """Picture `index` of a job, as soon as it is made; its ETag is its SHA-256."""
    response = picture(services, record, index)
    if names_tag(if_none_match, response.headers["etag"]):
        return Response(status_code=304, headers={"ETag": response.headers["etag"]})
    return response


def cancel_job(services: Services, record: JobRecord) -> JobRecord:
    """End a job unless it is over; returns it as it then is. Blocking."""
    after = services.store.cancel(record.id) or record
    services.queue.remove(record)
    return after


def picture(services: Services, record: JobRecord, index: int) -> Response:
    """A finished picture as an answer. Blocking.

    Raises:
        NotFound: when the job has no such picture (yet).
    """
    data = services.store.image(record.id, index)
    return picture_of(Outcome(record, {} if data is None else {index: data}), index)


def picture_of(outcome: Outcome, index: int) -> Response:
    """The same of what was read already.

    Raises:
        NotFound: when the job has no such picture (yet).
    """
    record, data = outcome.record, outcome.pictures.get(index)
    image = next((image for image in record.images if image.index == index), None)
    if image is None or data is None:
        raise NotFound(f"job {record.id} ({record.status}) has no image {index}")
    headers = {
        "ETag": f'"{image.sha256}"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, max-age=86400, immutable",
        "Content-Disposition": f'inline; filename="{image.seed}.{image.format}"',
    }
    return Response(data, media_type=MEDIA_TYPES[image.format], headers=headers)


def _page(
    services: Services, owner: str, limit: int, status: str | None, after: JobCursor | None
) -> tuple[list[JobRecord], JobRecord | None]:
    """Jobs of a page, and the last that was looked at for it, None when there are no more."""
    stride, looked, found = limit + 1 if status is None else STRIDE, 0, list[JobRecord]()
    while True:
        records = services.store.listing.page(owner, stride, after)
        for record in records:
            if status in (None, record.status):
                if len(found) == limit:
                    return found, found[-1]
                found.append(record)
        looked += len(records)
        if len(records) < stride:
            return found, None
        if looked >= LOOKED_AT:
            return found, records[-1]
        after = _place(_cursor(records[-1]))


def _cursor(last: JobRecord) -> str:
    """What the next page begins after: the moment alone would not do, two jobs may share it."""
    return f"{last.created_at!r}-{last.id}"


def _place(cursor: str) -> JobCursor:
    moment, _, job_id = cursor.partition("-")
    return JobCursor(float(moment), job_id)


def _shown(services: Services, record: JobRecord) -> dict[str, Any]:
    return job_object(record, services.queue.outlook(record, services.catalog.workers()))
