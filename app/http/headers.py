"""Request and response headers that several routes share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

from denoised.jobs.record import JobRecord

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="For 24 hours, the same key with the same body returns the same job.",
    ),
]
IfNoneMatch = Annotated[str | None, Header()]


def job_location(record: JobRecord) -> dict[str, str]:
    """The header with the path of a job."""
    return {"Location": f"/jobs/{record.id}"}
