"""Finding the job that a request names."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from denoised.app.http.errors import NotFound
from denoised.app.http.requests.query_parameters import check_query_parameters
from denoised.app.http.validation_errors import format_value
from denoised.app.services import Owner, Services, Serving
from denoised.jobs.errors import RecordError
from denoised.jobs.record import JobRecord

log = logging.getLogger("denoised.api")


def find_job(services: Services, job_id: str, owner: str) -> JobRecord:
    """A caller's job. Blocking.

    Raises:
        NotFound: when it is unknown, expired, owned by another caller, or its record is damaged.
    """
    try:
        record = services.store.job(job_id) if job_id.isalnum() else None
    except RecordError as error:
        log.warning("record unreadable", extra={"job": job_id, "reason": str(error)})
        raise NotFound(f"the record of job {format_value(job_id)} is damaged, so the job is lost") from error
    if record is None or record.owner != owner:
        raise NotFound(f"job {format_value(job_id)} not found")
    return record


def _path_job(job_id: str, connection: HTTPConnection, services: Serving, owner: Owner) -> JobRecord:
    record = find_job(services, job_id, owner)
    check_query_parameters(connection)
    return record


# The job that the path names. FastAPI resolves it before it validates the other parameters, so 404 precedes 422.
PathJob = Annotated[JobRecord, Depends(_path_job)]
