"""Errors as clients see them: `application/problem+json` (RFC 9457); under /v1 as the OpenAI API has them.

Problem                     any refusal: status, title, detail
├── Malformed        400    no HTTP, no handshake of a WebSocket, or no preflight that is allowed
├── InvalidRequest   422    names each field, the value given and what is allowed
├── Unauthorized     401    a key is missing or wrong
├── Forbidden        403    the caller is no local program
├── NotFound         404    unknown, expired or somebody else's
├── Conflict         409    the job's state does not allow it
├── TooLarge         413    the body is over the limit
├── UnsupportedMedia 415    the body is no JSON, or no PNG where one is due
├── TooBusy          429    too much waits; carries Retry-After
├── Unavailable      503    Redis is away, or no worker serves the model
├── Full             507    Redis has no memory for more
└── WaitedTooLong    504    the job is not done yet; names it
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from denoised.app.compat.openai.errors import advice, error_object, is_v1, status_of
from denoised.jobs.errors import StoreFull, StoreUnavailable
from denoised.jobs.log import REQUEST_ID

MEDIA_TYPE = "application/problem+json"
UNREADABLE = "There was an error parsing the body"  # FastAPI's words for what json.loads could not take
LISTED = 20  # errors that one answer lists
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SHOWN = 80  # characters of a refused value that an error repeats


class Problem(Exception):
    """A refusal. `extra` are further members of the problem object."""

    status = 400

    def __init__(self, detail: str, headers: Mapping[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """The problem object."""
        told = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        request_id = REQUEST_ID.get()
        known = {"request_id": request_id} if request_id else {}
        return {**told, "detail": self.detail, **known, **self.extra}

    def response(self, path: str) -> Response:
        """The same as an HTTP answer, in the form that clients of that path read."""
        if is_v1(path):
            told = error_object(self.status, self.detail, self.extra)
            return JSONResponse(told, status_of(self.status), {**self.headers, **advice(self.extra)})
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers, media_type=MEDIA_TYPE)


class Malformed(Problem):
    status = 400


class InvalidRequest(Problem):
    status = 422

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        """errors: (field, message) pairs; each message names the value and the limit."""
        listed = [{"field": field, "message": message} for field, message in errors]
        super().__init__("; ".join(f"{field}: {message}" for field, message in errors), errors=listed)


class Unauthorized(Problem):
    status = 401

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(Problem):
    status = 403


class NotFound(Problem):
    status = 404


class Conflict(Problem):
    status = 409


class TooLarge(Problem):
    status = 413


class UnsupportedMedia(Problem):
    status = 415


class TooBusy(Problem):
    status = 429

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


class Unavailable(Problem):
    status = 503


class Full(Problem):
    status = 507


class WaitedTooLong(Problem):
    status = 504


def install(app: FastAPI) -> None:
    """Make every error of the app a problem object."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> Response:
        return error.response(request.scope["path"])

    @app.exception_handler(StoreUnavailable)
    async def _store_unavailable(request: Request, error: StoreUnavailable) -> Response:
        return of_store(error).response(request.scope["path"])

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        if isinstance(error.__cause__, json.JSONDecodeError):
            found = [("body", unreadable(error.__cause__))]
        else:
            found = readable(error.errors(), _fields_of_the_body(request))
        return InvalidRequest(found).response(request.scope["path"])

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400 and error.detail == UNREADABLE:
            return InvalidRequest([("body", unreadable(error.__cause__))]).response(request.scope["path"])
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed(request))  # the router names the first route's methods only
        problem = Problem(_detail(request, error), headers=headers)
        problem.status = error.status_code
        return problem.response(request.scope["path"])


def of_store(error: StoreUnavailable) -> Problem:
    """What a client is told when Redis took nothing."""
    if isinstance(error, StoreFull):
        return Full("Redis has no memory for more; nothing was accepted, what was accepted before goes on")
    return redis_is_away()


def redis_is_away() -> Unavailable:
    return Unavailable("Redis does not answer; nothing was accepted, try again", headers={"Retry-After": "2"})


def readable(errors: Sequence[Any], fields: Collection[str] = ()) -> list[tuple[str, str]]:
    """Pydantic's errors as (field, message with the value given); at most `LISTED` of them. fields: that there are."""
    found = [(_field(error), _message(error, fields)) for error in errors[:LISTED]]
    return found + ([("body", f"and {len(errors) - LISTED} more errors")] if len(errors) > LISTED else [])


def unreadable(cause: BaseException | None) -> str:
    """What is wrong with a body, from what `json.loads` raised."""
    if isinstance(cause, json.JSONDecodeError):
        return f"no valid JSON ({cause})"
    if isinstance(cause, UnicodeDecodeError):
        return f"no valid JSON (byte {cause.start} is no {cause.encoding.upper()})"
    if isinstance(cause, RecursionError):
        return "no JSON that can be read (nested too deeply; allowed: one object)"
    if isinstance(cause, ValueError):
        return f"no JSON that can be read (too long a number; allowed: {sys.get_int_max_str_digits()} digits)"
    return "cannot be read"


def shown(value: object) -> str:
    """A refused value, short enough to print."""
    if isinstance(value, str) and len(value) > SHOWN - 2:
        value = value[: SHOWN - 3] + "…"  # the quotation ends
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if isinstance(value, str) else _short(text)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _field(error: Any) -> str:
    places = [str(part) for part in error["loc"] if part not in ("body", "query", "path", "header")]
    if error["type"] == "json_invalid":
        return "body"
    return _short(".".join(places)) or "body"


def _message(error: Any, fields: Collection[str]) -> str:
    if error["type"] == "json_invalid":
        return f"no valid JSON ({error.get('ctx', {}).get('error', error['msg'])})"
    if error["type"] == "extra_forbidden":
        return _no_field(str(error["loc"][-1]), error.get("input"), fields)
    if error["type"] == "missing":
        return "is missing"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"should be a JSON object (given: {shown(error.get('input'))})"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]} (given: {shown(error.get('input'))})"


def _no_field(name: str, value: object, fields: Collection[str]) -> str:
    near = difflib.get_close_matches(name[:SHOWN].lower(), fields, n=1, cutoff=0.75)
    hint = f"; did you mean {near[0]}?" if near else ""
    allowed = f"; allowed: {', '.join(fields)}" if fields else ""
    return f"is no field of this request{hint} (given: {shown(value)}{allowed})"


def _fields_of_the_body(request: Request) -> Collection[str]:
    """What the route that took a request reads of a JSON body; nothing where it reads none."""
    body = getattr(request.scope.get("route"), "body_field", None)
    return list(getattr(body.field_info.annotation, "model_fields", ())) if body is not None else ()


def _allowed(request: Request) -> list[str]:
    """The methods that some route of this path takes; HEAD wherever GET is one (`app.http.head`)."""
    routes = request.app.routes
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    taken = {method for method in METHODS if any(route.matches(scopes[method])[0] is Match.FULL for route in routes)}
    if "GET" in taken:
        taken.add("HEAD")
    return [method for method in METHODS if method in taken]


def _detail(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"there is nothing at {shown(request.url.path)[1:-1]}"
    if error.status_code == 405:
        return f"{request.method} is not possible here"
    return str(error.detail)
