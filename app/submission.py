"""From a request body to an accepted job."""

from __future__ import annotations

import hashlib
import json
import time
import uuid

from app.errors import InvalidRequest, TooBusy
from app.schemas import GenerateRequest
from app.services import Services
from app.validation import choose_card, resolve
from worker.job import JobRecord, Outlook

CLAIM_SECONDS = 1.0  # how long the second of two equal posts waits for the first one's job


def submit(services: Services, body: GenerateRequest, owner: str, key: str | None = None) -> tuple[JobRecord, Outlook]:
    """Accept a request, or find the job that the same Idempotency-Key made.

    Blocking: call it in a thread.

    Raises:
        InvalidRequest: for fields that do not fit the model, or a key that came with another body.
        Unavailable: when no live worker serves the model.
        TooBusy: when too many jobs wait.
        StoreUnavailable: when Redis does not answer; nothing was accepted then.
    """
    card = choose_card(body.model, services.catalog.cards(), services.catalog.known())
    request = resolve(body, card)
    job_id = uuid.uuid4().hex
    if key is not None:
        first_id = _claim(services, body, owner, key, job_id)
        if first_id != job_id and (record := _first(services, first_id)) is not None:
            return record, services.queue.outlook(record, services.catalog.workers())
        job_id = first_id
    outlook = services.queue.forecast(request, services.catalog.workers())
    waiting = services.queue.depth(request.model)
    if waiting >= services.settings.max_queue:
        limit = f"{waiting} jobs wait for {request.model}, the limit is {services.settings.max_queue}"
        raise TooBusy(limit, retry_after=max(1, round(outlook.eta_seconds or 10)))
    record = JobRecord(id=job_id, owner=owner, request=request, created_at=time.time())
    services.queue.enqueue(record, outlook)
    return record, outlook


def _claim(services: Services, body: GenerateRequest, owner: str, key: str, job_id: str) -> str:
    """The id of the job that this key stands for: ours, or that of an earlier equal request."""
    if not 1 <= len(key) <= 255:
        raise InvalidRequest([("Idempotency-Key", f"has {len(key)} characters (allowed: 1 … 255)")])
    content = json.dumps(body.model_dump(exclude_unset=True), sort_keys=True)
    body_hash = hashlib.sha256(content.encode()).hexdigest()
    first_id, first_hash = services.store.claim(owner, hashlib.sha256(key.encode()).hexdigest(), job_id, body_hash)
    if first_hash != body_hash:
        raise InvalidRequest([("Idempotency-Key", "was used within 24 h with another body")])
    return first_id


def _first(services: Services, job_id: str) -> JobRecord | None:
    """The job of whoever claimed the key first; None when it has not appeared (it then is ours to make)."""
    end = time.monotonic() + CLAIM_SECONDS
    while (record := services.store.job(job_id)) is None and time.monotonic() < end:
        time.sleep(0.05)
    return record
