"""Webhooks: their verification, and how their deliveries stand (`GET /webhooks`)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from denoised.client.errors import InvalidWebhook
from denoised.client.job import Job
from denoised.client.resource import Resource

PREFIX = "whsec_"
VERSION = "v1"
TOLERANCE = 300.0  # seconds; of the Standard Webhooks specification


class HeaderFields(Protocol):
    """The headers of a request: a dict, or what a framework has for them."""

    def items(self) -> Iterable[tuple[str, str]]:
        """Names and values."""
        ...


@dataclass(frozen=True)
class WebhookDelivery(Resource):
    """How the delivery of a job's webhook stands.

    job: the job's id.
    status: waiting (the job has not ended), pending (another attempt follows), delivered, or failed.
    attempts: that were begun.
    last_attempt_at, next_attempt_at: seconds since the epoch.
    last_response: HTTP status of the latest answer; None without one.
    error: why the latest attempt failed.
    """

    job: str
    url: str
    status: Literal["waiting", "pending", "delivered", "failed"]
    attempts: int
    last_attempt_at: float | None
    last_response: int | None
    error: str | None
    next_attempt_at: float | None


def verify_webhook(
    body: bytes, headers: HeaderFields, secret: str | Sequence[str], *, tolerance: float = TOLERANCE
) -> Job:
    """The job that a webhook brings, if the server has signed it with a secret of yours.

    A webhook may arrive twice; its `webhook-id` header is then the same.

    body: the request's body as it was received.
    headers: the request's headers, in any case.
    secret: `whsec_…`, or several of them; `Client.webhook_secrets` lists yours.
    tolerance: the most seconds between the webhook's time and this machine's clock, so that nobody can send an old
        webhook again.

    Raises:
        InvalidWebhook: if a header is missing, no signature is right, or the webhook is too old.
        ValueError: if a secret is none.
    """
    secrets = [secret] if isinstance(secret, str) else secret
    lower = {name.lower(): value for name, value in headers.items()}
    message, timestamp, signatures = (_header(lower, f"webhook-{name}") for name in ("id", "timestamp", "signature"))
    signed = f"{message}.{timestamp}.".encode() + body
    expected = [hmac.digest(_key(each), signed, hashlib.sha256) for each in secrets]
    if not any(hmac.compare_digest(given, right) for given in _decoded(signatures) for right in expected):
        raise InvalidWebhook("no signature of the webhook matches: another sender or secret, or an altered body")
    age = time.time() - _seconds(timestamp)
    if abs(age) > tolerance:
        raise InvalidWebhook(f"the webhook's time differs by {abs(age):.0f} s from here (allowed: {tolerance:g})")
    return Job.from_json(json.loads(body))


def _header(headers: Mapping[str, str], name: str) -> str:
    try:
        return headers[name]
    except KeyError:
        raise InvalidWebhook(f"the webhook has no header {name}") from None


def _seconds(timestamp: str) -> int:
    if not timestamp.isascii() or not timestamp.isdecimal() or len(timestamp) > 15:
        raise InvalidWebhook(f"webhook-timestamp is {timestamp!r:.40} (allowed: seconds since the epoch)")
    return int(timestamp)


def _key(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"a webhook secret is {PREFIX} and base64, which the one given is not") from error


def _decoded(signatures: str) -> Iterator[bytes]:
    """The signatures of the header; those of other versions are left out."""
    for signature in signatures.split(" "):
        version, _, encoded = signature.partition(",")
        if version == VERSION:
            try:
                yield base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                continue
