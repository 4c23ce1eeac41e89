"""Settles deliveries: acknowledges, requeues or releases RQ's side of a job that is over for this worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from denoised.jobs.errors import RecordError, StoreError
from denoised.jobs.record import Status
from denoised.jobs.store.store import Store
from denoised.jobs.store.update import JobUpdate
from denoised.worker.delivery.attempt import AttemptState
from denoised.worker.delivery.leases import Lease, Leases

log = logging.getLogger("denoised.worker")


class Settlement:
    """Called from the publisher's thread. settled(): called after each job; on_success(): before, if it succeeded."""

    def __init__(
        self, store: Store, leases: Leases, settled: Callable[[], None], on_success: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self._leases = leases
        self._settled = settled
        self._on_success = on_success

    def settle(self, attempt: AttemptState, last: JobUpdate | None) -> None:
        """Settle the delivery of an attempt that is over here. last: see `Publisher`."""
        lease = self._leases.remove(attempt)
        if lease is None:
            return
        try:
            if last is None:
                self._settle_unknown(lease)
            elif last.status == "queued":
                _requeue(lease)
            else:
                if last.status == "succeeded":
                    self._on_success()
                lease.delivery.ack()
                _log_end(lease, last.status, last.error, attempt.progress.evaluations)
        except StoreError as error:
            # The lease expires; the next worker to take the job finds it over, or does it again.
            warn_unsettled(attempt, error)
        finally:
            self._settled()

    def release(self, lease: Lease) -> None:
        """Release a delivery that a newer one of this worker replaces."""
        try:
            lease.delivery.release()
        except StoreError as error:
            warn_unsettled(lease.attempt, error)  # its lease has expired anyway

    def _settle_unknown(self, lease: Lease) -> None:
        """Settle a job by its record, after an update was refused or another process ended it."""
        try:
            record = self._store.job(lease.attempt.id)
        except RecordError as error:
            log.warning("damaged job dropped", extra={**lease.attempt.log_fields, "reason": str(error)})
            record = None  # nothing can be made of it
        if record is None or record.terminal:
            lease.delivery.ack()
            if record is not None:
                _log_end(lease, record.status, record.error, record.evaluations)
        elif record.attempt == lease.attempt.record.attempt:
            _requeue(lease)
        else:
            lease.delivery.release()  # another attempt owns it, and RQ's job with it


def warn_unsettled(attempt: AttemptState, error: Exception) -> None:
    log.warning("delivery not settled", extra={**attempt.log_fields, "reason": str(error)})


def _requeue(lease: Lease) -> None:
    log.info("job requeued", extra={**lease.attempt.log_fields, "step": lease.attempt.progress.step})
    lease.delivery.requeue()


def _log_end(lease: Lease, status: Status | None, error: Mapping[str, str] | None, evaluations: int) -> None:
    outcome = {"status": status, "code": (error or {}).get("code"), "evaluations": evaluations, "spent": lease.spent}
    log.info("job over", extra={**lease.attempt.log_fields, **outcome})
