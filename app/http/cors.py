"""Browsers of other origins, where the settings allow some (CORS, Fetch standard 3.3)."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from denoised.app.http.errors import Malformed
from denoised.app.http.request_context import HEADER

METHODS = ("GET", "POST", "DELETE")
SENT = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer", HEADER)
READ = ("Location", "X-Job-Id", "X-Seed", "Preference-Applied", "Retry-After", "ETag", HEADER)


class CorsMiddleware(CORSMiddleware):
    """ASGI middleware; stands before the guard, since a browser's preflight carries no key."""

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        super().__init__(
            app, allow_origins=sorted(allowed), allow_methods=METHODS, allow_headers=SENT, expose_headers=READ
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """As starlette's, a refusal being a problem object that says what is allowed."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        allowed = f"the origins that are set, {', '.join(METHODS)}, and the headers {', '.join(SENT)}"
        refused = bytes(response.body).decode().removeprefix("Disallowed CORS ")
        problem = Malformed(f"a preflight with another {refused} than is allowed (allowed: {allowed})")
        of_cors = {name: response.headers[name] for name in response.headers if not name.startswith("content-")}
        problem.headers.update(of_cors)
        return problem.response("")
