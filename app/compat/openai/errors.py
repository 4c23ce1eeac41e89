"""The error format of the OpenAI API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

from denoised.app.http.error_formats import ErrorFormat
from denoised.app.http.errors import Problem

PREFIX = "/v1"
STATUSES = {422: 400}  # the OpenAI API answers an invalid request with 400
TYPES = {429: "rate_limit_error"}  # otherwise invalid_request_error below 500, server_error from 500
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


def error_object(problem: Problem) -> dict[str, Any]:
    """A problem as the OpenAI API describes an error."""
    status = STATUSES.get(problem.status, problem.status)
    error_type = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    fields = [error["field"] for error in problem.extra.get("errors", [])]
    param = fields[0] if fields else problem.extra.get("param")
    code = problem.extra.get("code") or CODES.get(status, "internal_error" if status >= 500 else None)
    return {"error": {"message": problem.detail, "type": error_type, "param": param, "code": code}}


def retry_headers(problem: Problem) -> dict[str, str]:
    """Keep the official client from retrying a request that has created a job: it would create a second one."""
    return {"X-Should-Retry": "false"} if "job" in problem.extra else {}


OPENAI_ERRORS = ErrorFormat(PREFIX, "application/json", "OpenAIError", error_object, retry_headers, STATUSES)
