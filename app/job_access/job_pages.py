"""Pages of a caller's jobs, newest first, of all or of some of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Query
from pydantic import AfterValidator

from denoised.app.services import Services
from denoised.jobs.record import JobRecord
from denoised.jobs.store.job_listing import JobCursor

# For a page of some jobs: jobs that are read at once, and in all.
STRIDE, MAX_READ = 100, 1000
CURSOR = r"^[0-9]{1,15}(\.[0-9]{1,15})?-[0-9A-Za-z]{1,64}$"  # created_at-id


def _validate_cursor(cursor: str | None) -> str | None:
    if cursor is not None and not re.fullmatch(CURSOR, cursor):
        raise ValueError("should be the next_cursor of the previous page")
    return cursor


PageLimit = Annotated[int, Query(ge=1, le=100)]
PageCursor = Annotated[
    str | None,
    AfterValidator(_validate_cursor),
    Query(description="`next_cursor` of the previous page", json_schema_extra={"pattern": CURSOR}),
]


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list. status, model: None for all; since: seconds since the epoch; webhook: only jobs with one."""

    status: str | None = None
    model: str | None = None
    since: float = 0.0
    webhook: bool = False

    @property
    def is_sparse(self) -> bool:
        """Whether jobs between the selected ones are left out."""
        return self.status is not None or self.model is not None or self.webhook

    def contains(self, record: JobRecord) -> bool:
        """Whether a job that is not too old is selected."""
        if self.webhook and record.request.webhook is None:
            return False
        return self.status in (None, record.status) and self.model in (None, record.request.model)


def read_page(
    services: Services, owner: str, limit: int, selection: JobFilter, cursor: str | None
) -> tuple[list[JobRecord], str | None]:
    """The jobs of a page, and the cursor of the next page; None when this page is the last. Blocking."""
    after = _parse(cursor) if cursor is not None else None
    stride, read, found = STRIDE if selection.is_sparse else limit + 1, 0, list[JobRecord]()
    while True:
        records = services.store.listing.page(owner, stride, after)
        for record in records:
            if record.created_at < selection.since:
                return found, None  # all that follow are older
            if selection.contains(record):
                if len(found) == limit:
                    return found, _cursor(found[-1])
                found.append(record)
        read += len(records)
        if len(records) < stride:
            return found, None
        if read >= MAX_READ:
            return found, _cursor(records[-1])
        after = _parse(_cursor(records[-1]))


def _cursor(last: JobRecord) -> str:
    """The cursor after a job: time and id, because two jobs may share a time."""
    return f"{last.created_at!r}-{last.id}"


def _parse(cursor: str) -> JobCursor:
    created_at, _, job_id = cursor.partition("-")
    return JobCursor(float(created_at), job_id)
