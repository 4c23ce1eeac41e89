"""From a request body to an accepted job."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from denoised.app.admission.catalog import Fleet
from denoised.app.admission.input_pictures import (
    RequestPictures,
    count_inputs,
    find_pictures,
    read_inputs,
    with_digests,
)
from denoised.app.admission.quotas import Load
from denoised.app.admission.request_warnings import find_warnings, unserved_warning
from denoised.app.admission.reservation import job_bytes, picture_bytes
from denoised.app.admission.task_validation import cards_of_tasks, resolve_task
from denoised.app.admission.validation import choose_card, resolve_request
from denoised.app.admission.variations import expand_variation
from denoised.app.admission.webhook_check import check_webhook
from denoised.app.http.errors import InvalidRequest, Unavailable
from denoised.app.http.key_limits import KeyLimits
from denoised.app.http.validation_errors import format_value
from denoised.app.services import Services
from denoised.jobs.errors import JobUnconfirmed, RecordError, StoreUnavailable
from denoised.jobs.log import REQUEST_ID
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.request import RequestFields
from denoised.jobs.sampling_request import SamplingRequest, without_defaults
from denoised.jobs.store.store import Store
from denoised.jobs.task_request import Task
from denoised.model.serving.card import ModelCard

log = logging.getLogger("denoised.api")

CLAIM_SECONDS = 1.0  # how long the second of two equal requests waits for the job of the first
CLAIM_POLL_SECONDS = 0.05


def submit(
    services: Services,
    fields: RequestFields,
    owner: str,
    key: str | None = None,
    *,
    watched: bool = False,
    api: str | None = None,
    task: Task = "generate",
) -> tuple[JobRecord, QueueEstimate]:
    """Accept a request, or find the job that an earlier request with the same Idempotency-Key created. Blocking.

    key: the Idempotency-Key.
    watched: the caller follows the job's events from the first one.
    api: the API of another program that the request came through.
    task: what is asked for; other tasks than making images have fields of their own (`jobs.task_request`).

    Raises:
        InvalidRequest: for fields that do not fit the model, or a key that was used with another body.
        Unavailable: when no live worker serves the model, or the server is shutting down.
        TooBusy: when the queue is full, or the API key has too many pictures stored.
        StoreUnavailable: when Redis does not answer or is out of memory; nothing was accepted.
    """
    if services.draining:
        raise Unavailable("the server is restarting; nothing was accepted, try again", headers={"Retry-After": "2"})
    fields = check_webhook(fields, services.settings.webhooks.origins)
    claim = IdempotencyClaim.of(fields, owner, key, task) if key is not None else None
    if claim is not None and (record := claim.find_job(services.store)) is not None:
        return record, services.queue.estimate(record, services.catalog.workers())
    fleet = services.catalog.fleet()
    request, card, inputs = _resolve(services, expand_variation(services, fields, owner), owner, task, fleet)
    limits = services.keys.limits(owner)
    job = replace(_new_job(services, request, card, owner, inputs), watched=watched, api=api, weight=limits.weight)
    if card.name not in fleet.served:
        job = replace(job, warnings=(*job.warnings, unserved_warning(card)))
    with services.admission.accepting(Load.of(job)) as pending:
        snapshot, workers = services.queue.view(fleet.known), fleet.workers
        services.admission.check(Load.of(job), pending, snapshot.loads(), workers, limits)
        snapshot.memory.check_room(snapshot.reserved_bytes(pending), job.reserved_bytes)
        services.store.results.reserve(job.id, picture_bytes(request, card))
        count_inputs(services, owner, inputs)
        job = replace(job, created_at=snapshot.store_time)
        estimate = services.queue.estimate_new(job, snapshot, workers)
        with _charged(services, job, limits) as refund:
            record, estimate = _accept(services, job, estimate, claim, inputs)
            if record.created_at != job.created_at:
                refund()  # it is the job of a concurrent equal request
            return record, estimate


@contextlib.contextmanager
def _charged(services: Services, job: JobRecord, limits: KeyLimits) -> Iterator[Callable[[], None]]:
    """Count a job of a key while it is accepted; the value takes that back, as an error does.

    Raises:
        TooBusy: when the key has used up one of its quotas.
    """

    def refund() -> None:
        with contextlib.suppress(StoreUnavailable):
            services.store.usage.refund(job.owner, job.request.evaluations)

    if not job.owner:
        yield lambda: None
        return
    services.admission.charge(services.store.usage, job, limits)
    try:
        yield refund
    except JobUnconfirmed:
        raise  # it may have been accepted
    except Exception:
        refund()
        raise


def _resolve(
    services: Services, fields: RequestFields, owner: str, task: Task, fleet: Fleet
) -> tuple[SamplingRequest, ModelCard, RequestPictures]:
    """The request with every default filled in, the card of its model, and its pictures. Blocking."""
    cards = fleet.cards if task == "generate" else cards_of_tasks(fleet.cards, fields.get("model"))
    card = choose_card(fields.get("model"), cards, fleet.known, fields)
    given = find_pictures(services, fields, owner)
    named = with_digests(fields, given)
    request = resolve_request(named, card) if task == "generate" else resolve_task(task, named, card)
    return request, card, read_inputs(services, given, request, card, owner)


def _new_job(
    services: Services, request: SamplingRequest, card: ModelCard, owner: str, inputs: RequestPictures
) -> JobRecord:
    return JobRecord(
        uuid.uuid4().hex,
        owner,
        request,
        time.time(),
        request_id=REQUEST_ID.get() or None,
        warnings=(*inputs.warnings, *(find_warnings(request, card) if request.task == "generate" else ())),
        reserved_bytes=job_bytes(request, card, large_values=services.store.results.store is None),
        digest=card.digest or None,
        inputs=inputs.keys,
    )


def _accept(
    services: Services, job: JobRecord, estimate: QueueEstimate, claim: IdempotencyClaim | None, inputs: RequestPictures
) -> tuple[JobRecord, QueueEstimate]:
    """Enqueue a job, or find the one that a concurrent equal request created."""
    if claim is None:
        services.queue.enqueue(job, estimate, inputs.pictures)
    else:
        job_id, record = claim.claim(services.store, job.id)
        if record is not None:
            return record, services.queue.estimate(record, services.catalog.workers())
        job = replace(job, id=job_id)
        if not services.queue.enqueue_once(job, estimate, inputs.pictures):
            return claim.own_job(services.store, job.id) or job, estimate
    request = job.request
    log_fields = {"model": request.model, "images": request.n, "evaluations": request.evaluations}
    log.info(
        "job accepted", extra={"job": job.id, "owner": job.owner, **log_fields, "eta_seconds": estimate.eta_seconds}
    )
    return job, estimate


@dataclass(frozen=True)
class IdempotencyClaim:
    """A caller's use of an Idempotency-Key: it stands for one job for 24 hours."""

    owner: str
    key: str
    body_hash: str

    @property
    def key_hash(self) -> str:
        """The form in which the store keeps the key."""
        return _sha256(self.key)

    @classmethod
    def of(cls, fields: RequestFields, owner: str, key: str, task: Task = "generate") -> IdempotencyClaim:
        """The claim for a request. Requests that differ only in explicit defaults are equal."""
        given = without_defaults(fields) | ({} if task == "generate" else {"task": task})
        return cls(owner, key, _sha256(json.dumps(given, sort_keys=True)))

    def find_job(self, store: Store) -> JobRecord | None:
        """The job of an earlier equal request, if there was one."""
        with self._refusing_damage():
            earlier = store.idempotency.find(self.owner, self.key_hash)
        return self.own_job(store, self._check_body(earlier)) if earlier is not None else None

    def claim(self, store: Store, job_id: str) -> tuple[str, JobRecord | None]:
        """Claim the key for a new job. Returns the id to use, and the job if a concurrent equal request created it.

        If that request never creates its job, the caller creates it under the returned id.
        """
        with self._refusing_damage():
            first = store.idempotency.claim(self.owner, self.key_hash, job_id, self.body_hash)
        first_id = self._check_body(first)
        end = time.monotonic() + CLAIM_SECONDS
        record = None
        while first_id != job_id and record is None and time.monotonic() < end:
            record = self.own_job(store, first_id)
            if record is None:
                time.sleep(CLAIM_POLL_SECONDS)
        return first_id, record

    def own_job(self, store: Store, job_id: str) -> JobRecord | None:
        """The job that the key stands for; None if it is not stored.

        Raises:
            InvalidRequest: when its record is damaged, or it is another caller's.
        """
        with self._refusing_damage():
            record = store.job(job_id)
            if record is not None and record.owner != self.owner:
                raise RecordError("the Idempotency-Key stands for a job of another caller")
        return record

    @contextlib.contextmanager
    def _refusing_damage(self) -> Iterator[None]:
        try:
            yield
        except RecordError as error:
            message = f"{format_value(self.key)} cannot be used, because its record is damaged (allowed: another key)"
            raise InvalidRequest([("Idempotency-Key", message)]) from error

    def _check_body(self, claim: tuple[str, str]) -> str:
        """The job id of a stored claim.

        Raises:
            InvalidRequest: when it was made with another body.
        """
        job_id, body_hash = claim
        if body_hash != self.body_hash:
            key = format_value(self.key)
            message = f"{key} was used within 24 h with another body (allowed: the same body, or another key)"
            raise InvalidRequest([("Idempotency-Key", message)])
        return job_id


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
