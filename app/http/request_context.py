"""The outermost layer: gives each request an id and its patience with Redis, and the log one line about each that was
answered.

The line has the route's template and never the path or the query: a ticket stands in one. Probes that were answered as
probes are leave none: they come many times a second while something starts, and would hide what matters.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from denoised.app.http.errors import Problem
from denoised.app.http.http_metrics import HttpMetrics
from denoised.jobs.deadline import REDIS_DEADLINE, RedisDeadline
from denoised.jobs.log import REQUEST_ID

log = logging.getLogger("denoised.api")

HEADER = "X-Request-Id"
REDIS_SECONDS = 1.0  # that all questions of a request may take; the last one has `app.services.COMMAND_SECONDS` itself
PROBES, PROBED = ("/healthz", "/readyz"), (200, 503)
_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass
class Answer:
    """What was answered so far. status: 101 for a socket that was accepted; gone: nothing more can be sent."""

    request_id: str
    status: int | None = None
    close_code: int | None = None
    gone: bool = False
    started: float = field(default_factory=time.perf_counter)
    begun: float | None = None  # when its first byte went out

    @property
    def waited(self) -> float:
        """Seconds until it began; until now when it has not."""
        return (self.begun or time.perf_counter()) - self.started

    def note(self, message: Message) -> None:
        """Look at a message on its way out; the first one also gets the headers that all answers have."""
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            self.begun = time.perf_counter()
        elif message["type"] == "websocket.accept":
            self.status = 101
        elif message["type"] == "websocket.close":
            self.close_code = message.get("code", 1000)
            return
        else:
            return
        headers = MutableHeaders(raw=list(message.get("headers", [])))
        headers[HEADER] = self.request_id
        headers.setdefault("X-Content-Type-Options", "nosniff")
        message["headers"] = headers.raw


class RequestContextMiddleware:
    """ASGI middleware. Takes the client's `X-Request-Id` over if it is a word of at most 64 characters."""

    def __init__(self, app: ASGIApp, meters: HttpMetrics) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            with self._meters.in_flight.track_inprogress():
                await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = Answer(_request_id(scope))
        token = REQUEST_ID.set(answer.request_id)
        REDIS_DEADLINE.set(RedisDeadline(REDIS_SECONDS))

        async def noting(message: Message) -> None:
            answer.note(message)
            try:
                await send(message)
            except Exception:
                answer.gone = True
                raise

        try:
            await self._app(scope, receive, noting)
        except Exception:
            if answer.gone:
                return  # the client left, or broke the protocol, while it was answered
            log.exception("defect")
            if scope["type"] != "http" or answer.status is not None:
                raise
            await Defect().response(scope["path"])(scope, receive, noting)
        finally:
            log.log(_level(scope, answer), "request", extra=_line(scope, answer))
            if scope["type"] == "http":
                self._meters.observe(scope["method"], _template(scope), answer.status, answer.waited)
            REQUEST_ID.reset(token)


class Defect(Problem):
    status = 500

    def __init__(self) -> None:
        super().__init__("an error of the server's own; its log says more")


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(HEADER, "")
    return given if _SANE.fullmatch(given) else uuid.uuid4().hex


def _template(scope: Scope) -> str | None:
    """Of the route that took the request, None when none did."""
    return getattr(scope.get("route"), "path", None)


def _level(scope: Scope, answer: Answer) -> int:
    """Of the line about a request."""
    probe = _template(scope) in PROBES and answer.status in PROBED
    return logging.DEBUG if probe else logging.INFO


def _line(scope: Scope, answer: Answer) -> dict[str, object]:
    job = scope.get("path_params", {}).get("job_id")
    facts = {
        "method": scope.get("method", "WEBSOCKET")[:16],
        "route": _template(scope),
        "status": answer.status,
        "close_code": answer.close_code,
        "gone": answer.gone or None,
        "job": str(job)[:64] if job is not None else None,
        "owner": scope.get("denoised_owner") or None,
        "ms": round((time.perf_counter() - answer.started) * 1000, 2),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}
