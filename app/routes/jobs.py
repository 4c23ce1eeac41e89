"""Accepted jobs: get one, list them, cancel one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import AfterValidator
from starlette.responses import JSONResponse, Response

from denoised.app.http.errors import Conflict
from denoised.app.http.job_object import job_object
from denoised.app.http.schemas import JobList, JobObject, ProblemObject
from denoised.app.job_access.cancellation import cancel_job
from denoised.app.job_access.lookup import PathJob
from denoised.app.services import Owner, Services, Serving
from denoised.jobs.record import LATEST, JobRecord
from denoised.jobs.store.job_listing import JobCursor

router = APIRouter(prefix="/jobs", tags=["jobs"])

Status = Literal["queued", "running", "succeeded", "failed", "canceled"]

# For a page of one status: jobs that are read at once, and in all.
STRIDE, MAX_READ = 100, 1000
CURSOR = r"^[0-9]{1,15}(\.[0-9]{1,15})?-[0-9A-Za-z]{1,64}$"  # created_at-id

_PROBLEM: dict[str, Any] = {"model": ProblemObject, "content": {"application/problem+json": {}}}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {**_PROBLEM, "description": "Unknown, expired, or another caller's."}
}


def _validate_cursor(cursor: str | None) -> str | None:
    if cursor is not None and not re.fullmatch(CURSOR, cursor):
        raise ValueError("should be the next_cursor of the previous page")
    return cursor


@router.get("", responses={200: {"model": JobList}}, summary="Your jobs, newest first")
def list_jobs(
    services: Serving,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[
        str | None,
        AfterValidator(_validate_cursor),
        Query(description="`next_cursor` of the previous page", json_schema_extra={"pattern": CURSOR}),
    ] = None,
    status: Annotated[Status | None, Query(description="only jobs with this status")] = None,
    model: Annotated[
        str | None, Query(description="only jobs of the model with this name", min_length=1, max_length=200)
    ] = None,
    since: Annotated[
        float | None,
        Query(description="only jobs with a `created_at` of at least this", ge=0, le=LATEST, allow_inf_nan=False),
    ] = None,
) -> Response:
    """One page of your jobs. With `status` or `model`, a page may have fewer than `limit` jobs, or none, and still not
    be the last one, whose `next_cursor` is null."""
    selection = JobFilter(status, model, since or 0.0)
    page, last = _page(services, owner, limit, selection, _parse_cursor(cursor) if cursor is not None else None)
    next_cursor = _cursor(last) if last is not None else None
    return JSONResponse({"jobs": [_estimated_job(services, record) for record in page], "next_cursor": next_cursor})


@router.get("/{job_id}", responses={200: {"model": JobObject}, **_NOT_FOUND}, summary="A job")
def get_job(record: PathJob, services: Serving) -> Response:
    """The current state of a job."""
    return JSONResponse(_estimated_job(services, record))


@router.delete(
    "/{job_id}",
    responses={
        200: {"model": JobObject, "description": "The canceled job; repeating the request is harmless."},
        409: {**_PROBLEM, "description": "The job has already succeeded or failed."},
        **_NOT_FOUND,
    },
    summary="Cancel a job",
)
def delete_job(record: PathJob, services: Serving) -> Response:
    """A queued job never starts; a running one leaves the batch before the next evaluation."""
    latest = cancel_job(services, record)
    if latest.status != "canceled":
        raise Conflict(f"job {latest.id} has already {latest.status}", job=latest.id)
    return JSONResponse(job_object(latest))


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list. status, model: None for all; since: seconds since the epoch."""

    status: str | None = None
    model: str | None = None
    since: float = 0.0

    @property
    def is_sparse(self) -> bool:
        """Whether jobs between the selected ones are left out."""
        return self.status is not None or self.model is not None

    def contains(self, record: JobRecord) -> bool:
        return self.status in (None, record.status) and self.model in (None, record.request.model)


def _page(
    services: Services, owner: str, limit: int, selection: JobFilter, after: JobCursor | None
) -> tuple[list[JobRecord], JobRecord | None]:
    """The jobs of a page, and the job after which the next page begins; None when this page is the last."""
    stride, read, found = STRIDE if selection.is_sparse else limit + 1, 0, list[JobRecord]()
    while True:
        records = services.store.listing.page(owner, stride, after)
        for record in records:
            if record.created_at < selection.since:
                return found, None  # all that follow are older
            if selection.contains(record):
                if len(found) == limit:
                    return found, found[-1]
                found.append(record)
        read += len(records)
        if len(records) < stride:
            return found, None
        if read >= MAX_READ:
            return found, records[-1]
        after = _parse_cursor(_cursor(records[-1]))


def _cursor(last: JobRecord) -> str:
    """The cursor after a job: time and id, because two jobs may share a time."""
    return f"{last.created_at!r}-{last.id}"


def _parse_cursor(cursor: str) -> JobCursor:
    created_at, _, job_id = cursor.partition("-")
    return JobCursor(float(created_at), job_id)


def _estimated_job(services: Services, record: JobRecord) -> dict[str, Any]:
    return job_object(record, services.queue.estimate(record, services.catalog.workers()))
