"""406 for a response of a type that the client's `Accept` excludes (RFC 9110, 15.5.7)."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from denoised.app.http.error_formats import PROBLEM_JSON, ErrorFormats
from denoised.app.http.errors import NotAcceptable, Problem
from denoised.app.http.requests.negotiation import JSON, PROBLEM, AcceptedTypes

SAFE_METHODS = ("GET", "HEAD")
NEGOTIATED_PATHS = ("/generate", "/noise")  # routes that choose the type of their response themselves


class AcceptMiddleware:
    """ASGI middleware. A request that only reads is answered first, and its response replaced if its type is excluded;
    any other is refused before it has an effect. Errors are always sent.

    A picture is always sent: its URL implies the type, and RFC 9110 allows that. APIs with an error format of their own
    are left alone: OpenAI's client names JSON where it expects a stream.
    """

    def __init__(self, app: ASGIApp, formats: ErrorFormats) -> None:
        self._app = app
        self._formats = formats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted = AcceptedTypes.parse(Headers(scope=scope).get("accept", "")) if scope["type"] == "http" else None
        if accepted is None or not accepted.qualities or self._formats.of_path(scope["path"]) is not PROBLEM_JSON:
            await self._app(scope, receive, send)
        elif scope["method"] in SAFE_METHODS:
            await self._read(accepted, scope, receive, send)
        elif scope["path"] in NEGOTIATED_PATHS or accepted.accepts(JSON) or accepted.accepts(PROBLEM):
            await self._app(scope, receive, send)
        else:
            await self._formats.response(NotAcceptable([JSON]), scope["path"])(scope, receive, send)

    async def _read(self, accepted: AcceptedTypes, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_acceptable(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                media_type = _media_type(message)
                if media_type and not media_type.startswith("image/") and not accepted.accepts(media_type):
                    raise _Excluded(NotAcceptable([media_type]))
            await send(message)

        try:
            await self._app(scope, receive, send_acceptable)
        except _Excluded as error:
            await self._formats.response(error.problem, scope["path"])(scope, receive, send)


class _Excluded(Exception):
    """Stops a route before its response."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem


def _media_type(start: Message) -> str:
    return Headers(raw=list(start.get("headers", []))).get("content-type", "").partition(";")[0].strip().lower()
