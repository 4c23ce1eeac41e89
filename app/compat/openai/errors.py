"""Errors as clients of the OpenAI API read them: `{"error": {"message", "type", "param", "code"}}`.

Knows no exception of ours: `app.http.errors` asks it how a refusal is to be written under /v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FOLDER = "/v1"
STATUSES = {422: 400}  # what is wrong with a request is a BadRequestError there
KINDS = {429: "rate_limit_error"}  # of other refusals below 500: invalid_request_error; above: server_error
CODES = {
    400: "invalid_value",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    503: "unavailable",
    504: "timeout",
    507: "insufficient_storage",
}


def is_v1(path: str) -> bool:
    """Whether a path is one where clients of the OpenAI API call."""
    return path == FOLDER or path.startswith(f"{FOLDER}/")


def status_of(status: int) -> int:
    """The status under /v1 of what has this one elsewhere."""
    return STATUSES.get(status, status)


def error_object(status: int, message: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The error of a refusal; extra: the further members of its problem object."""
    status = status_of(status)
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    fields = [error["field"] for error in extra.get("errors", [])]
    param = fields[0] if fields else extra.get("param")
    code = extra.get("code") or CODES.get(status, "internal_error" if status >= 500 else None)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def advice(extra: Mapping[str, Any]) -> dict[str, str]:
    """Headers for the official client, which repeats what failed: never what has made a job, or there would be two."""
    return {"X-Should-Retry": "false"} if "job" in extra else {}
