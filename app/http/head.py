"""HEAD on whatever GET is possible on: the same answer without its body (RFC 9110, 9.3.2)."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """ASGI middleware, inside the guard: who may GET may HEAD. The route ends as soon as its headers are known, so that
    a stream is not run for nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        scope["method"] = "GET"

        async def headers_only(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["method"] = "HEAD"  # the server reads it, to allow a Content-Length without content
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise Answered

        try:
            await self._app(scope, receive, headers_only)
        except Answered:
            pass
        finally:
            scope["method"] = "HEAD"


class Answered(Exception):
    """All was said that a HEAD asks for."""
