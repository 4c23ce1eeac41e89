"""The `webhook` of a request, checked against the hosts that the operator allows."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import cast

from denoised.app.http.errors import InvalidRequest
from denoised.app.http.validation_errors import format_value
from denoised.app.webhooks.target import WebhookTarget
from denoised.jobs.request import RequestFields

ALLOWED = "an https URL of a host that the operator of this server allows"


def check_webhook(fields: RequestFields, origins: AbstractSet[str]) -> RequestFields:
    """The fields, with the webhook in the form that is stored.

    origins: the allowed ones; a message names none, since other callers may use them.

    Raises:
        InvalidRequest: when it is not a URL, or has another host, port or scheme.
    """
    url = fields.get("webhook")
    if url is None:
        return fields
    try:
        target = WebhookTarget.parse(url)
    except ValueError as error:
        raise InvalidRequest([("webhook", f"{format_value(url)}: {error} (allowed: {ALLOWED})")]) from error
    if target.origin not in origins:
        allowed = ALLOWED if origins else "none; the operator of this server allows no host"
        raise InvalidRequest([("webhook", f"{format_value(url)} is not allowed (allowed: {allowed})")])
    return cast(RequestFields, {**fields, "webhook": target.url})
