"""The responses to exceptions that routes raise."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Match

from denoised.app.http.error_formats import ErrorFormats
from denoised.app.http.errors import InvalidRequest, Problem, Unavailable, store_problem
from denoised.app.http.http_metrics import METHODS
from denoised.app.http.validation_errors import describe_unreadable_body, describe_validation_errors, format_value
from denoised.jobs.errors import RecordError, StoreUnavailable

log = logging.getLogger("denoised.api")

UNREADABLE = "There was an error parsing the body"  # FastAPI's detail when decoding raised another exception


def install(app: FastAPI, formats: ErrorFormats) -> None:
    """Answer every exception of the app, and of its WebSockets before they are accepted, in the format of its path."""

    def respond(connection: HTTPConnection, problem: Problem) -> Response:
        return formats.response(problem, connection.scope["path"])

    @app.exception_handler(Problem)
    async def _problem(connection: HTTPConnection, error: Problem) -> Response:
        return respond(connection, error)

    @app.exception_handler(StoreUnavailable)
    async def _store_unavailable(connection: HTTPConnection, error: StoreUnavailable) -> Response:
        return respond(connection, store_problem(error))

    @app.exception_handler(RecordError)
    async def _damaged(connection: HTTPConnection, error: RecordError) -> Response:
        log.error("damaged key", extra={"reason": str(error)})
        return respond(connection, Unavailable("a value in Redis is damaged; see the server's log for details"))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        if isinstance(error.__cause__, json.JSONDecodeError):
            return respond(request, InvalidRequest([("body", describe_unreadable_body(error.__cause__))]))
        return respond(request, InvalidRequest(describe_validation_errors(error.errors(), _body_fields(request))))

    @app.exception_handler(WebSocketRequestValidationError)
    async def _invalid_handshake(connection: HTTPConnection, error: WebSocketRequestValidationError) -> Response:
        return respond(connection, InvalidRequest(describe_validation_errors(error.errors())))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return respond(request, _http_problem(request, error))


def _http_problem(request: Request, error: HTTPException) -> Problem:
    """The problem for an exception that Starlette or FastAPI raised."""
    if error.status_code == 400 and error.detail == UNREADABLE:
        if isinstance(error.__cause__, Problem):
            return error.__cause__
        return InvalidRequest([("body", describe_unreadable_body(error.__cause__))])
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))  # the router names only those of the first route
    problem = Problem(_detail(request, error), headers=headers)
    problem.status = error.status_code
    return problem


def _detail(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"nothing found at {format_value(request.url.path)[1:-1]}"
    if error.status_code == 405:
        return f"{request.method} is not allowed here"
    return str(error.detail)


def _allowed_methods(request: Request) -> list[str]:
    """The methods that the routes of this path allow; HEAD wherever GET is allowed (`app.http.middleware.head`)."""
    routes = request.app.routes
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    allowed = {method for method in METHODS if any(route.matches(scopes[method])[0] is Match.FULL for route in routes)}
    if "GET" in allowed:
        allowed.add("HEAD")
    return [method for method in METHODS if method in allowed]


def _body_fields(request: Request) -> Collection[str]:
    """The names of the fields of the JSON body that the matched route reads, if it reads one."""
    body = getattr(request.scope.get("route"), "body_field", None)
    return list(getattr(body.field_info.annotation, "model_fields", ())) if body is not None else ()
