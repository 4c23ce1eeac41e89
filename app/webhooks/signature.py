"""Signatures as of the Standard Webhooks specification 1.0.0, and the secrets that make them.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

PREFIX = "whsec_"


def caller_secret(secret: str, owner: str) -> str:
    """The secret of one caller: `whsec_` and 32 bytes in base64, derived from the server's.

    A caller cannot compute the secret of another, so it cannot sign what another's receiver accepts.
    """
    derived = hmac.digest(secret.encode(), b"denoised webhooks of " + owner.encode(), hashlib.sha256)
    return PREFIX + base64.b64encode(derived).decode()


def message_id(job: str) -> str:
    """The `webhook-id` of a job's end, the same in every attempt."""
    return f"msg_{job}"


def signed_headers(message: str, timestamp: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The three headers of a webhook.

    message: its id.
    timestamp: of this attempt, in seconds since the epoch.
    secrets: of the caller; one signature for each.
    """
    signed = f"{message}.{timestamp}.".encode() + body
    signatures = [f"v1,{_signature(secret, signed)}" for secret in secrets]
    return {
        "webhook-id": message,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
