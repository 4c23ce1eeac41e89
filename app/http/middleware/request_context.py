"""The outermost middleware: gives each request an id and a deadline for Redis, and logs and measures its response.

The log line has the route's template, never the path or the query, because a query may contain a ticket. Health checks
with an expected status are not logged: they come several times a second and would hide the other lines.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from denoised.app.http.error_formats import ErrorFormats
from denoised.app.http.errors import InternalError
from denoised.app.http.http_metrics import HttpMetrics
from denoised.app.http.middleware.auth import OWNER_SCOPE_KEY
from denoised.jobs.log import REQUEST_ID
from denoised.jobs.redis.deadline import REDIS_DEADLINE, RedisDeadline

log = logging.getLogger("denoised.api")

REQUEST_ID_HEADER = "X-Request-Id"
REDIS_SECONDS = 1.0  # for all commands of a request together; the last one may add `app.services.COMMAND_SECONDS`
HEALTH_ROUTES, HEALTH_STATUSES = ("/healthz", "/readyz"), (200, 503)
_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FIRST_MESSAGES = ("http.response.start", "websocket.http.response.start", "websocket.accept")


@dataclass
class ResponseRecord:
    """What was sent in response to one request.

    Attributes:
        status: 101 for an accepted WebSocket; None before the response starts.
        close_code: of a WebSocket.
        disconnected: the client left, so nothing more can be sent.
        received_at, started_at: of the request and of the first byte of the response, by `time.perf_counter`.
    """

    request_id: str
    status: int | None = None
    close_code: int | None = None
    disconnected: bool = False
    received_at: float = field(default_factory=time.perf_counter)
    started_at: float | None = None

    @property
    def seconds_to_start(self) -> float:
        """Until the response started, or until now."""
        return (self.started_at or time.perf_counter()) - self.received_at

    def record(self, message: Message) -> None:
        """Update from an ASGI message that is about to be sent; add the headers that every response has."""
        if message["type"] == "websocket.close":
            self.close_code = message.get("code", 1000)
        if message["type"] not in _FIRST_MESSAGES:
            return
        if message["type"] == "websocket.accept":
            self.status = 101
        else:
            self.status = message["status"]
            self.started_at = time.perf_counter()
        headers = MutableHeaders(raw=list(message.get("headers", [])))
        headers[REQUEST_ID_HEADER] = self.request_id
        headers.setdefault("X-Content-Type-Options", "nosniff")
        message["headers"] = headers.raw


class RequestContextMiddleware:
    """ASGI middleware. A client's X-Request-Id is used if it is a word of at most 64 characters."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, formats: ErrorFormats) -> None:
        self._app = app
        self._metrics = metrics
        self._formats = formats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            with self._metrics.in_flight.track_inprogress():
                await self._respond(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._respond(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = ResponseRecord(_request_id(scope))
        token = REQUEST_ID.set(response.request_id)
        REDIS_DEADLINE.set(RedisDeadline(REDIS_SECONDS))

        async def send_recorded(message: Message) -> None:
            response.record(message)
            try:
                await send(message)
            except Exception:
                response.disconnected = True
                raise

        try:
            await self._app(scope, receive, send_recorded)
        except Exception:
            if response.disconnected:
                return  # the client left, or broke the protocol, during the response
            log.exception("defect")
            if scope["type"] != "http" or response.status is not None:
                raise
            await self._formats.response(InternalError(), scope["path"])(scope, receive, send_recorded)
        finally:
            self._report(scope, response)
            REQUEST_ID.reset(token)

    def _report(self, scope: Scope, response: ResponseRecord) -> None:
        route = _route_template(scope)
        is_health_check = route in HEALTH_ROUTES
        expected = is_health_check and response.status in HEALTH_STATUSES
        log.log(logging.DEBUG if expected else logging.INFO, "request", extra=_log_fields(scope, response))
        if is_health_check and route is not None:
            self._metrics.observe_health_check(route, response.status)
        elif scope["type"] == "http":
            self._metrics.observe(scope["method"], route, response.status, response.seconds_to_start)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _VALID_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _route_template(scope: Scope) -> str | None:
    """The path template of the matched route; None when none matched."""
    return getattr(scope.get("route"), "path", None)


def _log_fields(scope: Scope, response: ResponseRecord) -> dict[str, object]:
    job = scope.get("path_params", {}).get("job_id")
    fields = {
        "method": scope.get("method", "WEBSOCKET")[:16],
        "route": _route_template(scope),
        "status": response.status,
        "close_code": response.close_code,
        "gone": response.disconnected or None,
        "job": str(job)[:64] if job is not None else None,
        "owner": scope.get(OWNER_SCOPE_KEY) or None,
        "ms": round((time.perf_counter() - response.received_at) * 1000, 2),
    }
    return {name: value for name, value in fields.items() if value is not None}
