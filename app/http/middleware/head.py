"""HEAD wherever GET is allowed: the same response without its body (RFC 9110, 9.3.2)."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """ASGI middleware; runs the GET route and stops it at its headers, so that it produces no stream."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        scope["method"] = "GET"

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["method"] = "HEAD"  # uvicorn then accepts a Content-Length without content
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise HeadersSent

        try:
            await self._app(scope, receive, send_headers)
        except HeadersSent:
            pass
        finally:
            scope["method"] = "HEAD"


class HeadersSent(Exception):
    """Stops a route after its headers."""
