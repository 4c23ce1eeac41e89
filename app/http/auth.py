"""Who may call, and with what; the first thing every request and socket meets.

With API keys: a key (or, for a browser's WebSocket, a ticket) on all but the open routes.
Without: local programs only, told by Host, Origin and Sec-Fetch-Site. A body must be JSON, or
for `POST /verify` a PNG: neither is a kind that a browser sends to another site without asking first.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from denoised.app.http.api_keys import key_hash
from denoised.app.http.errors import (
    Forbidden,
    Malformed,
    Problem,
    TooLarge,
    Unauthorized,
    UnsupportedMedia,
    redis_is_away,
)
from denoised.app.settings import MAX_BODY, ApiSettings
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.store import Store

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
OPEN_ROUTES = ("/", "/healthz", "/readyz")
OPEN_FOLDER = "/playground/"
TAKES_PNG = ("POST", "/verify")


class AuthMiddleware:
    """ASGI middleware; puts the caller's name into the scope as `denoised_owner`."""

    def __init__(self, app: ASGIApp, settings: ApiSettings, store: Store) -> None:
        self._app = app
        self._settings = settings
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            _check_framing(scope)
            scope["denoised_owner"] = await self._admit(scope)
        except Problem as problem:
            await refuse(problem, scope, receive, send)
            return
        await self._app(scope, _limited(receive), send)

    async def _admit(self, scope: Scope) -> str:
        """The caller's name, "" where everybody is the same local user.

        Raises:
            Problem: when it may not call, or not so.
        """
        headers = Headers(scope=scope)
        if self._settings.api_keys:
            owner = "" if _is_open(scope) else await self._owner(scope, headers)
        else:
            self._check_local(scope, headers)
            owner = ""
        _check_body(scope, headers)
        return owner

    async def _owner(self, scope: Scope, headers: Headers) -> str:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            owner = self._settings.api_keys.owner(key.strip())
            if owner is not None:
                return owner
            raise Unauthorized("the API key is not known")
        ticket = parse_qs(scope["query_string"].decode("latin-1")).get("ticket", [""])[0]
        if scope["type"] == "websocket" and ticket:
            try:
                holder = await run_in_threadpool(self._store.tickets.redeem, key_hash(ticket))
            except StoreUnavailable as error:
                raise redis_is_away() from error
            if holder is not None:
                return holder
            raise Unauthorized("the ticket is used up, expired or unknown")
        raise Unauthorized("an API key is needed: Authorization: Bearer KEY")

    def _check_local(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if _name(host) not in LOCAL_HOSTS | self._settings.allowed_hosts:
            raise Forbidden(f"Host {host[:80]!r} is not local; without API keys only local programs are served")
        origin = headers.get("origin")
        ours = origin is not None and self._origin_is_ours(origin, host)
        if origin is not None and not ours:
            raise Forbidden(f"Origin {origin[:80]!r} is foreign; without API keys only local programs are served")
        top = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/"
        # A browser counts localhost and 127.0.0.1 as two sites, and says cross-site of an allowed origin, too.
        if headers.get("sec-fetch-site") == "cross-site" and not (top or ours):
            raise Forbidden("a request from another site; without API keys only local programs are served")

    def _origin_is_ours(self, origin: str, host: str) -> bool:
        if origin in self._settings.allowed_origins:
            return True
        try:
            return "@" not in origin and _site(urlsplit(origin).netloc) == _site(host)
        except ValueError:
            return False


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or a socket before it is accepted, with a problem."""
    if scope["type"] == "websocket":
        socket = WebSocket(scope, receive, send)
        await socket.receive()
        await socket.send_denial_response(problem.response(scope["path"]))
    else:
        await problem.response(scope["path"])(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return scope["type"] == "http" and (path in OPEN_ROUTES or path.startswith(OPEN_FOLDER))


def _name(host: str) -> str:
    """A Host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _site(netloc: str) -> tuple[str, int | None]:
    """Name and port; the names of this machine are one."""
    name = _name(netloc)
    return "localhost" if name in LOCAL_HOSTS else name, urlsplit(f"//{netloc}").port


def _limited(receive: Receive) -> Receive:
    """The same, up to MAX_BODY bytes of body. FastAPI's own limit comes before the key, and answers plain text."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b"")) if message["type"] == "http.request" else 0
        if taken > MAX_BODY:
            # A route's reader of the body lets only this kind of exception through.
            raise HTTPException(413, f"the body is too large (allowed: {MAX_BODY} bytes)")
        return message

    return limited


def _check_framing(scope: Scope) -> None:
    """Of a body whose end is told in two ways nobody knows which one a proxy believes (RFC 9112, 6.1): refused before
    even the key is looked at, as what is no HTTP, and the connection ends."""
    headers = Headers(scope=scope)
    if "content-length" in headers and "transfer-encoding" in headers:
        detail = "Content-Length and Transfer-Encoding were both given (allowed: one of them)"
        raise Malformed(detail, headers={"Connection": "close"})


def _check_body(scope: Scope, headers: Headers) -> None:
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    length = headers.get("content-length", "0")
    if length.isdecimal() and (len(length) > 15 or int(length) > MAX_BODY):
        raise TooLarge(f"the body has {length[:20]} bytes (allowed: {MAX_BODY})")
    kind = headers.get("content-type", "")
    supported = _supported(scope)
    if has_body and kind.partition(";")[0].strip().lower() != supported:
        raise UnsupportedMedia(f"Content-Type {kind[:80]!r} is not supported (supported: {supported})")


def _supported(scope: Scope) -> str:
    """The one kind of body that a route takes."""
    png = scope["type"] == "http" and (scope["method"], scope["path"]) == TAKES_PNG
    return "image/png" if png else "application/json"
