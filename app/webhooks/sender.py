"""Sends the webhooks of ended jobs: a thread that claims those that are due, and one short thread for each attempt.

All front ends share the work (`jobs.store.webhook_queue`). A slow receiver holds as many attempts as `PER_ORIGIN`, so
the webhooks of other receivers go on.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from denoised.app.http.job_object import job_object
from denoised.app.webhooks.post import Answer, PostFailed, post
from denoised.app.webhooks.signature import caller_secret, message_id, signed_headers
from denoised.app.webhooks.target import WebhookTarget
from denoised.app.webhooks.webhook_settings import WebhookSettings
from denoised.jobs.errors import RecordError, StoreUnavailable
from denoised.jobs.record import JobRecord
from denoised.jobs.store.store import Store
from denoised.jobs.store.webhook_queue import ClaimedWebhook

log = logging.getLogger("denoised.api")

PER_ORIGIN = 4  # attempts of this process at once
IN_ALL = 16
POLL_SECONDS = 1.0  # between looks at the queues; the end of a job shortens it
PAUSE_SECONDS = 0.01  # the shortest time between looks
RETRY_SECONDS = 2.0  # after an error of Redis
MAX_ATTEMPTS = 8
DELAY_FACTOR = 4  # of each delay to the one before it
MAX_DELAY = 6 * 3600.0  # seconds
GONE = 410
JOIN_SECONDS = 0.5

Outcome = Literal["delivered", "retried", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("delivered", "retried", "failed")


@dataclass(frozen=True)
class Attempt:
    """How an attempt went. status: of the answer, 0 without one; delay: seconds until the next; None: there is none."""

    outcome: Outcome
    status: int = 0
    error: str = ""
    delay: float | None = None


class WebhookSender:
    """The webhooks that this process sends. Thread-safe.

    Attributes:
        attempts: How many there were, by outcome.
    """

    def __init__(self, store: Store, settings: WebhookSettings) -> None:
        self._store = store
        self._settings = settings
        self._in_flight: Counter[str] = Counter()  # attempts by origin
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self.attempts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))

    def start(self) -> None:
        """Begin to send, if any host is allowed."""
        if self._settings.origins:
            self._thread.start()

    def stop(self) -> None:
        """Claim no more. Attempts in flight go on as long as the process lives; others repeat those that do not end."""
        self._stopped.set()
        self._due.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)

    def wake(self) -> None:
        """Look at the queues soon: a job has ended."""
        self._due.set()

    def pending(self) -> int:
        """The number of webhooks that are not delivered yet, of all processes. Blocking."""
        return self._store.webhooks.pending(sorted(self._settings.origins))

    def _run(self) -> None:
        failing = False
        while not self._stopped.is_set():
            try:
                more = self._claim()
                failing = False
            except StoreUnavailable as error:
                if not failing:
                    log.warning("webhooks are delayed: %s", error)
                failing, more = True, False
                self._stopped.wait(RETRY_SECONDS)
            except Exception:
                log.exception("defect")
                more = False
                self._stopped.wait(RETRY_SECONDS)
            self._stopped.wait(PAUSE_SECONDS)
            if not more:
                self._due.wait(POLL_SECONDS)
            self._due.clear()

    def _claim(self) -> bool:
        """Begin the attempts that are due and that there is room for. Returns whether there may be more."""
        room = self._room()
        if not room:
            return False
        claimed, more = self._store.webhooks.claim(room, self._settings.lease)
        for claim in claimed:
            with self._lock:
                self._in_flight[claim.origin] += 1
            threading.Thread(target=self._deliver, args=[claim], name="webhook", daemon=True).start()
        return more

    def _room(self) -> dict[str, int]:
        """How many more attempts of each origin may begin now, in an order that favors none."""
        with self._lock:
            in_flight, left = dict(self._in_flight), IN_ALL - self._in_flight.total()
        origins, room = list(self._settings.origins), dict[str, int]()
        random.shuffle(origins)
        for origin in origins:
            free = min(PER_ORIGIN - in_flight.get(origin, 0), left)
            if free > 0:
                room[origin] = free
                left -= free
        return room

    def _deliver(self, claim: ClaimedWebhook) -> None:
        try:
            self._attempt(claim)
        except StoreUnavailable as error:  # the lease ends, and the attempt is repeated
            log.warning("webhook unsettled", extra={"job": claim.job, "reason": str(error)})
        except Exception:
            log.exception("defect")
        finally:
            with self._lock:
                self._in_flight[claim.origin] -= 1
            self.wake()

    def _attempt(self, claim: ClaimedWebhook) -> None:
        """Send one webhook and record how that went."""
        started = time.monotonic()
        try:
            record = self._store.job(claim.job)
        except RecordError as error:
            attempt = Attempt("failed", error=f"the record of the job is damaged: {error}")
        else:
            if record is None:
                return  # expired; the next claim drops it
            attempt = self._send(record, claim)
        status = "pending" if attempt.outcome == "retried" else attempt.outcome
        self._store.webhooks.settle(claim, status, attempt.status, attempt.error, attempt.delay)
        with self._lock:
            self.attempts[attempt.outcome] += 1
        log.log(
            logging.INFO if attempt.outcome == "delivered" else logging.WARNING,
            f"webhook {attempt.outcome}",
            extra={
                "job": claim.job,
                "origin": claim.origin,
                "attempt": claim.attempt,
                "status": attempt.status or None,
                "reason": attempt.error or None,
                "seconds": round(time.monotonic() - started, 3),
            },
        )

    def _send(self, record: JobRecord, claim: ClaimedWebhook) -> Attempt:
        settings, target = self._settings, WebhookTarget.parse(record.request.webhook or "")
        body = json.dumps(job_object(record)).encode()
        secrets = [caller_secret(secret, record.owner) for secret in settings.secrets]
        headers = {"Content-Type": "application/json", "User-Agent": "denoised"}
        headers |= signed_headers(message_id(record.id), int(time.time()), body, secrets)
        private = target.origin in settings.private_origins
        try:
            answer = post(target, body, headers, timeout=settings.timeout, private=private)
        except PostFailed as error:
            return self._failed(claim, Answer(0), str(error))
        if 200 <= answer.status < 300:
            return Attempt("delivered", answer.status)
        if answer.status == GONE:
            return Attempt("failed", answer.status, "the receiver is gone (410), so no attempt follows")
        return self._failed(claim, answer, f"the receiver answered {answer.status}")

    def _failed(self, claim: ClaimedWebhook, answer: Answer, error: str) -> Attempt:
        """An attempt without success: after a delay that grows, with jitter, another follows, up to `MAX_ATTEMPTS`."""
        if claim.attempt >= MAX_ATTEMPTS:
            return Attempt("failed", answer.status, f"{error}; this was attempt {claim.attempt} of {MAX_ATTEMPTS}")
        delay = self._settings.first_delay * DELAY_FACTOR ** (claim.attempt - 1) * random.uniform(0.8, 1.2)
        return Attempt("retried", answer.status, error, min(MAX_DELAY, max(delay, answer.retry_after or 0)))
