"""How errors are written: as `application/problem+json`, unless a path prefix has a format of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse, Response

from denoised.app.http.errors import Problem


def _no_headers(problem: Problem) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class ErrorFormat:
    """How the errors of one API are written.

    Attributes:
        prefix: of the paths of that API, without a slash at the end.
        media_type: of the response.
        schema: the name of the body's schema in the OpenAPI document.
        body: returns the JSON object that describes a problem.
        headers: returns the response headers that a problem has in addition to its own.
        statuses: status codes that this API replaces by others.
    """

    prefix: str
    media_type: str
    schema: str
    body: Callable[[Problem], dict[str, Any]]
    headers: Callable[[Problem], dict[str, str]] = _no_headers
    statuses: Mapping[int, int] = field(default_factory=dict)

    def covers(self, path: str) -> bool:
        return path == self.prefix or path.startswith(f"{self.prefix}/")

    def status(self, status: int) -> int:
        """The status code that this API uses instead of `status`."""
        return self.statuses.get(status, status)

    def response(self, problem: Problem) -> Response:
        return JSONResponse(
            self.body(problem),
            status_code=self.status(problem.status),
            headers={**problem.headers, **self.headers(problem)},
            media_type=self.media_type,
        )


PROBLEM_JSON = ErrorFormat("", "application/problem+json", "ProblemObject", Problem.body)


class ErrorFormats:
    """The error format of each path: the first of `formats` that covers it, otherwise problem objects (RFC 9457)."""

    def __init__(self, formats: Sequence[ErrorFormat] = ()) -> None:
        self._formats = tuple(formats)

    def of_path(self, path: str) -> ErrorFormat:
        return next((each for each in self._formats if each.covers(path)), PROBLEM_JSON)

    def response(self, problem: Problem, path: str) -> Response:
        """The response to a request for `path`, or the denial of a WebSocket handshake."""
        return self.of_path(path).response(problem)
