"""Canceling a job."""

from __future__ import annotations

from denoised.app.services import Services
from denoised.jobs.record import JobRecord


def cancel_job(services: Services, record: JobRecord) -> JobRecord:
    """Cancel a job unless it has already ended; return its latest record. Blocking."""
    latest = services.store.cancel(record.id) or record
    services.queue.remove(record)
    return latest
