"""Reading of HTTP answers: JSON bodies, and errors as exceptions."""

from __future__ import annotations

from typing import Any

import httpx

from denoised.client.errors import InvalidResponse, RequestRejected, ServerBusy, ServiceError

BUSY_STATUSES = (429, 503, 504, 507)


def error_from_response(response: httpx.Response) -> ServiceError:
    """An error answer (RFC 9457 problem details) as an exception with the server's own message."""
    status = response.status_code
    try:
        problem = response.json()
        detail = str(problem["detail"])
        errors = [(str(error["field"]), str(error["message"])) for error in problem.get("errors") or []]
    except (ValueError, KeyError, TypeError, AttributeError):
        detail, errors = f"the server answers HTTP {status}, without a message of denoised", []
    if status in BUSY_STATUSES:
        return ServerBusy(detail, status, _retry_after(response))
    return RequestRejected(detail, status, errors) if status < 500 else ServiceError(detail, status)


def json_body(response: httpx.Response) -> Any:
    """The body of an answer.

    Raises:
        InvalidResponse: if it is not JSON.
    """
    try:
        return response.json()
    except ValueError as error:
        raise InvalidResponse(f"the server's answer is not JSON ({error}): is it denoised?") from error


def require_member(answer: Any, name: str) -> Any:
    """A member of a JSON object.

    Raises:
        InvalidResponse: if it is missing.
    """
    if not isinstance(answer, dict) or name not in answer:
        raise InvalidResponse(f"the server's answer has no {name!r}: is it denoised?")
    return answer[name]


def _retry_after(response: httpx.Response) -> float | None:
    """The Retry-After header in seconds. The server only sends whole seconds, never a date."""
    value = response.headers.get("Retry-After")
    return float(value) if value is not None and value.isdecimal() else None
