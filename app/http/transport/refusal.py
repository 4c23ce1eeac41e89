"""Responses to requests that never reach the app: their request id and log line are made here."""

from __future__ import annotations

import logging
import uuid
from http import HTTPStatus

from starlette.responses import Response

from denoised.app.http.error_formats import PROBLEM_JSON
from denoised.app.http.errors import BadRequest
from denoised.app.http.middleware.request_context import REQUEST_ID_HEADER
from denoised.jobs.log import REQUEST_ID

log = logging.getLogger("denoised.api")


def refusal_response(status: int, detail: str) -> Response:
    """A response after which the connection is closed."""
    token = REQUEST_ID.set(uuid.uuid4().hex)
    try:
        headers = {"Connection": "close", "X-Content-Type-Options": "nosniff", REQUEST_ID_HEADER: REQUEST_ID.get()}
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers["Retry-After"] = "2"
        problem = BadRequest(detail, headers)
        problem.status = status
        log.info("request", extra={"status": status})
        return PROBLEM_JSON.response(problem)
    finally:
        REQUEST_ID.reset(token)
