"""A caller's jobs that came through this API: their progress, and their interruption. All functions block."""

from __future__ import annotations

import time
from typing import Any

from denoised.app.compat.a1111.a1111_schemas import ProgressResponse, ProgressState
from denoised.app.job_access.cancellation import cancel_job
from denoised.app.services import Services
from denoised.jobs.record import JobRecord

API = "a1111"
NEWEST_JOBS = 50  # of a caller's jobs, those that are looked at
NEWEST_EVENTS = 64  # of a job, those in which the newest frame is looked for


def unfinished_jobs(services: Services, owner: str) -> list[JobRecord]:
    """Those of the caller's newest jobs that came through this API and have not ended; running ones first, by age."""
    page = services.store.listing.page(owner, NEWEST_JOBS)
    found = [record for record in page if record.api == API and not record.terminal]
    return sorted(found, key=lambda record: (record.status != "running", record.created_at))


def read_progress(services: Services, owner: str, *, with_image: bool) -> ProgressResponse:
    """The progress of the first of the unfinished jobs. with_image: include its newest preview."""
    unfinished = unfinished_jobs(services, owner)
    if not unfinished:
        return ProgressResponse()
    record = unfinished[0]
    estimate = services.queue.estimate(record, services.catalog.workers())
    return ProgressResponse(
        progress=record.request.fraction(record.step),
        eta_relative=estimate.eta_seconds or 0.0,
        state=ProgressState(
            job=record.id,
            job_count=1,
            job_timestamp=time.strftime("%Y%m%d%H%M%S", time.gmtime(record.created_at)),
            sampling_step=record.step,
            sampling_steps=record.request.run_steps,
        ),
        current_image=_newest_frame(services, record) if with_image else None,
    )


def cancel_unfinished(services: Services, owner: str) -> None:
    """Cancel the caller's unfinished jobs."""
    for record in unfinished_jobs(services, owner):
        cancel_job(services, record)


def _newest_frame(services: Services, record: JobRecord) -> str | None:
    """The newest preview of the first image, a PNG in base64; None if there is none yet."""
    if not record.request.preview_every:
        return None
    events: list[dict[str, Any]] = services.store.events.newest(record.id, NEWEST_EVENTS)
    frames = (event for event in events if event["type"] == "frame" and event.get("image") == 0)
    complete = filter(None, map(services.store.results.with_frame, frames))
    return next((str(frame["data"]) for frame in complete if "data" in frame), None)
