"""Jobs that a worker has taken off their queue and cannot start: they fail, or go back to the queue."""

from __future__ import annotations

import logging

from denoised.jobs.errors import RecordError
from denoised.jobs.store.started_attempt import StartedAttempt
from denoised.jobs.store.store import Store
from denoised.jobs.store.update import JobUpdate
from denoised.worker.delivery.begun_jobs import BegunJob, failure_of
from denoised.worker.delivery.leases import Delivery
from denoised.worker.error_kinds import is_out_of_memory

log = logging.getLogger("denoised.worker")


def end_unstarted(store: Store, delivery: Delivery, error: Exception) -> bool:
    """Fail a job, or requeue it if another worker may have the memory. Returns whether it is queued."""
    if not is_out_of_memory(error):
        _fail(store, delivery.job, error)
        delivery.ack()
        return False
    log.warning("job not started: out of memory", extra={"job": delivery.job, "reason": str(error)})
    try:
        queued = store.attempts.requeue_unstarted(delivery.job)
    except RecordError:  # nothing can be made of it
        queued = False
    (delivery.requeue if queued else delivery.ack)()
    return queued


def give_back(store: Store, job: BegunJob) -> None:
    """Requeue a job whose attempt has started, without a loss: the device has failed, not the job."""
    store.write(_requeued(job.started))
    log.info("job requeued", extra={"job": job.delivery.job})
    job.delivery.requeue()


def _requeued(started: StartedAttempt) -> JobUpdate:
    update = JobUpdate(started.record.id, attempt=started.record.attempt, number=1)
    update.requeue()
    return update


def _fail(store: Store, job_id: str, error: Exception) -> None:
    code, message = failure_of(error)
    log.warning("job unservable", extra={"job": job_id, "code": code, "reason": message})
    if code == "internal_error":
        log.error("an attempt could not be started", exc_info=error, extra={"job": job_id})
    update = JobUpdate(job_id)
    update.end("failed", {"code": code, "message": message})
    store.write(update)
