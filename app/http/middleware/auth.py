"""Authentication: which requests and WebSocket handshakes reach the routes.

With API keys, every route but the open ones needs a key, or, for a browser's WebSocket, a ticket. Without API keys,
only local programs are served: Host, Origin and Sec-Fetch-Site must not name another site. In both cases a body must
be JSON, or for `POST /verify` a PNG, because a browser sends neither to another site without a CORS preflight.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from denoised.app.http.api_keys import key_hash
from denoised.app.http.error_formats import ErrorFormats
from denoised.app.http.errors import Forbidden, Problem, Unauthorized, store_problem
from denoised.app.http.live_keys import KEY, LiveKeys
from denoised.app.http.requests.body_limits import BodyBudget, check_body, check_framing, max_body
from denoised.app.http.requests.field_lines import combine_field_lines
from denoised.app.http.requests.local_hosts import LOCALHOST, is_local, normalized, split_netloc
from denoised.app.settings import ApiSettings
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.store.store import Store

PAGES = ("/", "/learn")  # that other sites may link to
OPEN_PATHS = (*PAGES, "/operator", "/healthz", "/readyz")
OPEN_PREFIX = "/playground/"
TICKET_PARAMETER = "ticket"
OWNER_SCOPE_KEY = "denoised_owner"
UNSPECIFIED = {"0.0.0.0", "::"}
LOCAL_ONLY = "without API keys only local programs are served"


class AuthMiddleware:
    """ASGI middleware; stores the caller's name in the scope under OWNER_SCOPE_KEY.

    basic_prefixes: of the paths whose clients may send the API key as the password of HTTP Basic authentication.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ApiSettings,
        keys: LiveKeys,
        store: Store,
        formats: ErrorFormats,
        basic_prefixes: Sequence[str] = (),
    ) -> None:
        self._app = app
        self._basic_prefixes = tuple(f"{prefix}/" for prefix in basic_prefixes)
        self._settings = settings
        self._keys = keys
        self._store = store
        self._formats = formats
        self._bodies = BodyBudget()
        # The name that the operator gave the server is its own; 0.0.0.0 and `::` are not names.
        listens_on = {normalized(settings.host)} - UNSPECIFIED
        self._own_hosts = listens_on | {normalized(name) for name in settings.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            scope[OWNER_SCOPE_KEY] = await self._authenticate(scope)
        except Problem as problem:
            await self._formats.response(problem, scope["path"])(scope, receive, send)
            return
        body = self._bodies.body(receive, max_body(scope))
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.release()

    async def _authenticate(self, scope: Scope) -> str:
        """The caller's name; "" for an open route, and for every caller when there are no API keys.

        Raises:
            Problem: when the request is refused.
        """
        check_framing(Headers(scope=scope))
        combine_field_lines(scope)
        headers = Headers(scope=scope)
        owner = ""
        KEY.set("")
        if not self._keys.required:
            self._check_local(scope, headers)
        elif not _is_open(scope):
            owner = await self._owner(scope, headers)
        check_body(scope, headers)
        return owner

    async def _owner(self, scope: Scope, headers: Headers) -> str:
        """The owner of the request's API key or ticket."""
        key = self._key(scope, headers)
        if key:
            owner = self._keys.current.owner(key)
            if owner is None:
                raise Unauthorized("the API key is unknown")
            KEY.set(key_hash(key))
            return owner
        ticket = parse_qs(scope["query_string"].decode("latin-1")).get(TICKET_PARAMETER, [""])[0]
        if scope["type"] == "websocket" and ticket:
            return await self._redeem(ticket)
        raise Unauthorized("an API key is required: Authorization: Bearer KEY")

    def _key(self, scope: Scope, headers: Headers) -> str:
        """The API key of a request; empty if it sends none."""
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return credentials.strip()
        if scheme.lower() == "basic" and scope["path"].startswith(self._basic_prefixes):
            self._check_site(headers)
            return _basic_password(credentials.strip())
        return ""

    def _check_site(self, headers: Headers) -> None:
        """Refuse pages of other sites: a browser sends a password again, unlike a key, whichever site asks."""
        origin = headers.get("origin")
        allowed = origin is not None and self._is_allowed_origin(origin, headers.get("host", ""))
        cross_site = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if (origin is not None or cross_site) and not allowed:
            raise Forbidden("Basic authentication is not accepted from pages of other sites; use Bearer")

    async def _redeem(self, ticket: str) -> str:
        """The owner of a ticket, which is invalid afterward."""
        try:
            owner = await run_in_threadpool(self._store.tickets.redeem, key_hash(ticket))
        except StoreUnavailable as error:
            raise store_problem(error) from error
        if owner is None:
            raise Unauthorized("the ticket is unknown, expired or already used")
        # Tickets of earlier versions name no key.
        name, _, key = owner.partition(" ")
        if key and key not in self._keys.current.names:
            raise Unauthorized("the API key of the ticket was revoked")
        KEY.set(key)
        return name

    def _check_local(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        # HTTP/1.0 requires no Host; browsers, which a page of another site could use, send it always.
        missing = "host" not in headers and scope.get("http_version") == "1.0"
        if not missing and not self._is_accepted_host(host):
            raise Forbidden(f"Host {host[:80]!r} is not local; {LOCAL_ONLY}")
        origin = headers.get("origin")
        allowed = origin is not None and self._is_allowed_origin(origin, host)
        if origin is not None and not allowed:
            raise Forbidden(f"Origin {origin[:80]!r} is not allowed; {LOCAL_ONLY}")
        front_page = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] in PAGES
        # To a browser, localhost and 127.0.0.1 are two sites; an allowed origin is cross-site, too.
        if headers.get("sec-fetch-site") == "cross-site" and not (front_page or allowed):
            raise Forbidden(f"the request comes from another site; {LOCAL_ONLY}")

    def _is_accepted_host(self, host: str) -> bool:
        """Whether a Host header is local, configured, or the address that the server listens on."""
        parts = split_netloc(host)
        if parts is None:
            return False
        return is_local(parts[0]) or parts[0] in self._own_hosts

    def _is_allowed_origin(self, origin: str, host: str) -> bool:
        """Whether an Origin is configured, or is the site that the Host header names."""
        if origin in self._settings.allowed_origins:
            return True
        scheme, separator, netloc = origin.partition("://")
        return scheme in ("http", "https") and separator != "" and _site(netloc) == _site(host) is not None


def _basic_password(credentials: str) -> str:
    """The password of HTTP Basic credentials (RFC 7617); empty if they are malformed."""
    try:
        text = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    return text.partition(":")[2].strip()


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return scope["type"] == "http" and (path in OPEN_PATHS or path.startswith(OPEN_PREFIX))


def _site(netloc: str) -> tuple[str, int | None] | None:
    """Host name and port; all names of this machine are equal. None if the text is malformed."""
    parts = split_netloc(netloc)
    return (LOCALHOST, parts[1]) if parts is not None and is_local(parts[0]) else parts
