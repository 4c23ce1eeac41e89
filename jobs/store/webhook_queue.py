"""The webhooks of ended jobs: those that are due, and how their attempts went.

The script that ends a job queues its webhook, so no process can die in between. Front ends claim attempts with a lease;
if one dies, another repeats its attempts when the lease ends. A receiver may therefore get a webhook twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.webhook_scripts import CLAIM_WEBHOOKS, SETTLE_WEBHOOK
from denoised.jobs.store.store_connection import StoreConnection

DeliveryStatus = Literal["waiting", "pending", "delivered", "failed"]

_FIELDS = ("webhook_status", "webhook_attempts", "webhook_at", "webhook_response", "webhook_error", "webhook_next")
_STATUSES = ("pending", "delivered", "failed")


@dataclass(frozen=True)
class ClaimedWebhook:
    """One attempt that this process makes. attempt: counts from 1."""

    origin: str
    job: str
    attempt: int


@dataclass(frozen=True)
class DeliveryRecord:
    """How the delivery of a job's webhook stands. Times are seconds since the epoch, by Redis' clock.

    Attributes:
        status: waiting: the job has not ended; pending: another attempt follows; delivered; failed: none follows.
        attempts: That were begun.
        last_attempt_at: When the latest one began.
        last_response: The HTTP status of the receiver's latest answer; None if it gave none.
        error: Why the latest attempt failed, in one line.
        next_attempt_at: When the next one is due.
    """

    status: DeliveryStatus = "waiting"
    attempts: int = 0
    last_attempt_at: float | None = None
    last_response: int | None = None
    error: str | None = None
    next_attempt_at: float | None = None


class WebhookQueue:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection
        self._claim = connection.client.register_script(CLAIM_WEBHOOKS)
        self._settle = connection.client.register_script(SETTLE_WEBHOOK)

    def claim(self, room: Mapping[str, int], lease: float) -> tuple[list[ClaimedWebhook], bool]:
        """Claim webhooks that are due.

        room: the most of each origin.
        lease: seconds after which an attempt that is not settled is repeated.

        Returns the attempts, and whether there may be more.
        """
        origins = list(room)
        with self._connection.reachable():
            names = [keys.webhooks(origin) for origin in origins]
            dropped, *found = cast("list[Any]", self._claim(keys=names, args=[repr(lease), *room.values()]))
        claimed = [ClaimedWebhook(origins[i - 1], job.decode(), attempt) for i, job, attempt in found]
        return claimed, bool(dropped or claimed)

    def settle(
        self, claim: ClaimedWebhook, status: DeliveryStatus, response: int, error: str, delay: float | None
    ) -> bool:
        """Record how an attempt went.

        response: the HTTP status, 0 for none.
        delay: seconds until the next attempt; None: no other follows.

        Returns False, and changes nothing, if the job has expired or a later attempt has been claimed.
        """
        names = [keys.webhooks(claim.origin), keys.job(claim.job)]
        due_in = "-1" if delay is None else repr(delay)
        args: list[str | int] = [claim.job, claim.attempt, status, response, error, due_in]
        with self._connection.reachable():
            return bool(self._settle(keys=names, args=args))

    def deliveries(self, job_ids: Sequence[str]) -> dict[str, DeliveryRecord]:
        """How the deliveries of jobs stand, by job id, in one round trip."""
        with self._connection.reachable(), self._connection.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(keys.job(job_id), *_FIELDS)
            replies = pipe.execute(raise_on_error=False)
        return {job_id: _delivery(reply) for job_id, reply in zip(job_ids, replies, strict=True)}

    def pending(self, origins: Sequence[str]) -> int:
        """The number of webhooks to these origins that are not delivered yet."""
        with self._connection.reachable(), self._connection.client.pipeline(transaction=False) as pipe:
            for origin in origins:
                pipe.zcard(keys.webhooks(origin))
            return sum(reply for reply in pipe.execute(raise_on_error=False) if isinstance(reply, int))


def _delivery(reply: Any) -> DeliveryRecord:
    """The delivery from its fields; one that is damaged, or not begun, is waiting."""
    if isinstance(reply, Exception):
        return DeliveryRecord()
    try:
        status, attempts, at, response, error, due = (None if text is None else text.decode() for text in reply)
        if status not in _STATUSES:
            return DeliveryRecord()
        return DeliveryRecord(
            status,
            int(attempts or 0),
            _time(at),
            int(response or 0) or None,
            error or None,
            _time(due) if status == "pending" else None,
        )
    except ValueError:
        return DeliveryRecord()


def _time(text: str | None) -> float | None:
    return None if text is None else float(text)
