"""Cross-origin requests from browsers, where the settings allow some origins (Fetch standard, 3.3)."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from denoised.app.http.error_formats import PROBLEM_JSON
from denoised.app.http.errors import BadRequest
from denoised.app.http.middleware.request_context import REQUEST_ID_HEADER

METHODS = ("GET", "POST", "DELETE")
REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "Prefer",
    REQUEST_ID_HEADER,
)
RESPONSE_HEADERS = (
    "Location",
    "X-Job-Id",
    "X-Seed",
    "Preference-Applied",
    "Retry-After",
    "ETag",
    REQUEST_ID_HEADER,
)


class CrossOriginMiddleware(CORSMiddleware):
    """Starlette's CORS middleware, which refuses a preflight with a problem object instead of plain text.

    It runs before authentication, because a preflight carries no API key.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=sorted(origins),
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        return PROBLEM_JSON.response(BadRequest(bytes(response.body).decode()))
