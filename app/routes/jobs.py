"""Accepted jobs: get one, list them, cancel one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response

from denoised.app.http.errors import Conflict
from denoised.app.http.job_object import job_object
from denoised.app.http.schemas import JobList, JobObject, ProblemObject
from denoised.app.job_access.cancellation import cancel_job
from denoised.app.job_access.job_pages import JobFilter, PageCursor, PageLimit, read_page
from denoised.app.job_access.lookup import PathJob
from denoised.app.services import Owner, Services, Serving
from denoised.jobs.record import LATEST, JobRecord

router = APIRouter(prefix="/jobs", tags=["jobs"])

Status = Literal["queued", "running", "succeeded", "failed", "canceled"]

_PROBLEM: dict[str, Any] = {"model": ProblemObject, "content": {"application/problem+json": {}}}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {**_PROBLEM, "description": "Unknown, expired, or another caller's."}
}


@router.get("", responses={200: {"model": JobList}}, summary="Your jobs, newest first")
def list_jobs(
    services: Serving,
    owner: Owner,
    limit: PageLimit = 20,
    cursor: PageCursor = None,
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
    page, next_cursor = read_page(services, owner, limit, selection, cursor)
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


def _estimated_job(services: Services, record: JobRecord) -> dict[str, Any]:
    return job_object(record, services.queue.estimate(record, services.catalog.workers()))
