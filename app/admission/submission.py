"""From a request body to an accepted job."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from dataclasses import dataclass, replace

from denoised.app.admission.quotas import Load
from denoised.app.admission.validation import choose_card, resolve
from denoised.app.http.errors import InvalidRequest, Unavailable, shown
from denoised.app.services import Services
from denoised.jobs.log import REQUEST_ID
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.request import RequestFields, without_defaults
from denoised.jobs.store import Store

log = logging.getLogger("denoised.api")

CLAIM_SECONDS = 1.0  # how long the second of two equal posts waits for the first one's job


def submit(
    services: Services, fields: RequestFields, owner: str, key: str | None = None, *, watched: bool = False
) -> tuple[JobRecord, QueueEstimate]:
    """Accept a request, or find the job that the same Idempotency-Key made.

    Blocking: call it in a thread. watched: its events are followed from the first on.

    Raises:
        InvalidRequest: for fields that do not fit the model, or a key that came with another body.
        Unavailable: when no live worker serves the model, or the server has been told to stop.
        TooBusy: when too much work waits.
        StoreUnavailable: when Redis does not answer or is full; nothing was accepted then.
    """
    if services.draining:
        raise Unavailable("the server is restarting; nothing was accepted, try again", headers={"Retry-After": "2"})
    claim = Claim.of(fields, owner, key) if key is not None else None
    if claim is not None and (record := claim.fulfilled(services.store)) is not None:
        return record, services.queue.outlook(record, services.catalog.workers())
    fleet = services.catalog.fleet()
    request = resolve(fields, choose_card(fields.get("model"), fleet.cards, fleet.known))
    request_id = REQUEST_ID.get() or None
    job = JobRecord(uuid.uuid4().hex, owner, request, time.time(), request_id=request_id, watched=watched)
    with services.admission.coming(Load.of(job)) as others:
        look, workers = services.queue.look(fleet.known), fleet.workers
        services.admission.check(Load.of(job), others, look.loads(), workers)
        look.memory.check_room()
        outlook = services.queue.forecast(job, look, workers)
        return _accept(services, job, outlook, claim)


def _accept(
    services: Services, job: JobRecord, outlook: QueueEstimate, claim: Claim | None
) -> tuple[JobRecord, QueueEstimate]:
    """Queue a job, or find the one that an equal request made at the same moment."""
    if claim is None:
        services.queue.enqueue(job, outlook)
    else:
        job_id, record = claim.make(services.store, job.id)
        if record is not None:
            return record, services.queue.outlook(record, services.catalog.workers())
        job = replace(job, id=job_id)
        if not services.queue.enqueue_once(job, outlook):
            return services.store.job(job.id) or job, outlook
    request = job.request
    facts = {"model": request.model, "images": request.n, "evaluations": request.evaluations}
    log.info("job accepted", extra={"job": job.id, "owner": job.owner, **facts, "eta_seconds": outlook.eta_seconds})
    return job, outlook


@dataclass(frozen=True)
class Claim:
    """What an Idempotency-Key stands for: one job, for 24 hours."""

    owner: str
    key: str
    body_hash: str

    @property
    def key_hash(self) -> str:
        """How the store knows the key."""
        return _sha256(self.key)

    @classmethod
    def of(cls, fields: RequestFields, owner: str, key: str) -> Claim:
        """The claim that a caller makes with a key for a request; a default makes no difference, given or left out."""
        return cls(owner, key, _sha256(json.dumps(without_defaults(fields), sort_keys=True)))

    def fulfilled(self, store: Store) -> JobRecord | None:
        """The job that an earlier equal request made; None when there is none."""
        held = store.claimed(self.owner, self.key_hash)
        return store.job(self._checked(held)) if held is not None else None

    def make(self, store: Store, job_id: str) -> tuple[str, JobRecord | None]:
        """Claim the key for a job about to be made. Returns its id and, when an equal request at the same moment was
        first, that one's job; where that never appears, it is ours to make under its id."""
        first_id = self._checked(store.claim(self.owner, self.key_hash, job_id, self.body_hash))
        end = time.monotonic() + CLAIM_SECONDS
        record = None
        while first_id != job_id and record is None and time.monotonic() < end:
            record = store.job(first_id)
            if record is None:
                time.sleep(0.05)
        return first_id, record

    def _checked(self, held: tuple[str, str]) -> str:
        job_id, body_hash = held
        if body_hash != self.body_hash:
            message = (
                f"{shown(self.key)} was used within 24 h with another body (allowed: the same body, or another key)"
            )
            raise InvalidRequest([("Idempotency-Key", message)])
        return job_id


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
