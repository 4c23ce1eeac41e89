"""The error format of AUTOMATIC1111's web UI: `{"error", "detail", "body", "errors"}`.

`detail` is a text; for an invalid request (422) it is FastAPI's list of `{"loc", "msg", "type"}`.
"""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Any

from denoised.app.http.error_formats import ErrorFormat
from denoised.app.http.errors import Problem

PREFIX = "/sdapi"
CHALLENGE = 'Basic realm="denoised", Bearer'  # of a 401; clients of this API send HTTP Basic authentication


def error_object(problem: Problem) -> dict[str, Any]:
    """A problem as the web UI describes an error."""
    fields = problem.extra.get("errors", [])
    listed = [{"loc": _location(each["field"]), "msg": each["message"], "type": "value_error"} for each in fields]
    return {
        "error": problem.extra.get("code") or HTTPStatus(problem.status).phrase,
        "detail": listed or problem.detail,
        "body": "",
        "errors": problem.detail,
    }


def _location(field: str) -> list[str]:
    return ["body"] if field == "body" else ["body", *field.split(".")]


def challenge_headers(problem: Problem) -> dict[str, str]:
    """Offer both forms of authentication in a 401."""
    return {"WWW-Authenticate": CHALLENGE} if problem.status == 401 else {}


A1111_ERRORS = ErrorFormat(PREFIX, "application/json", "WebUIError", error_object, challenge_headers)
CONTROLNET_ERRORS = replace(A1111_ERRORS, prefix="/controlnet")  # of the routes of the ControlNet extension
