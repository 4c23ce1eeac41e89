"""Which request bodies are accepted: framing, coding, media type and size, and how many bytes of them at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Message, Receive, Scope

from denoised.app.http.errors import BadRequest, BodyTooLarge, UnsupportedMedia
from denoised.app.settings import MAX_BODY, MAX_JSON_BODY
from denoised.jobs.request_pictures import PICTURE_FIELDS
from denoised.jobs.task_request import ARRAY

# (method, path) of routes by the media types that they read; every other route reads JSON.
PNG_ROUTES = {("POST", "/verify")}
FORM_PATHS = (
    "/generate",
    "/verify",
    "/noise",
    "/score",
    "/likelihood",
    "/v1/images/edits",
    "/v1/images/variations",
)
FORM_ROUTES = {("POST", path) for path in FORM_PATHS}
WEB_UI_ROUTES = {("POST", "/sdapi/v1/txt2img"), ("POST", "/sdapi/v1/img2img")}
PICTURE_ROUTES = PNG_ROUTES | FORM_ROUTES | WEB_UI_ROUTES  # whose bodies contain pictures
PICTURE_MEMBERS = {*PICTURE_FIELDS, ARRAY, "controls", "init_images", "alwayson_scripts"}
MAX_LENGTH_DIGITS = 15  # of a Content-Length; longer ones are not converted to a number
MAX_BUFFERED = 128 * 1024 * 1024  # bytes of all bodies that are being received or processed
BUSY_SECONDS = "2"


def check_framing(headers: Headers) -> None:
    """Refuse a body with two lengths: a proxy in front of us may believe the other one (RFC 9112, 6.1).

    Raises:
        BadRequest: and the connection is closed.
    """
    if "content-length" in headers and "transfer-encoding" in headers:
        detail = "Content-Length and Transfer-Encoding were both given (allowed: one of them)"
        raise BadRequest(detail, headers={"Connection": "close"})


def check_body(scope: Scope, headers: Headers) -> None:
    """Refuse a body by its headers, before it is read. Where no route reads it, the answer is a 404 or 405 instead.

    Raises:
        BodyTooLarge: when its declared length exceeds the limit of the route.
        UnsupportedMedia: when its coding or media type is not the one that the route reads.
    """
    length, limit = headers.get("content-length", "0"), max_body(scope)
    if length.isdecimal() and (len(length) > MAX_LENGTH_DIGITS or int(length) > limit):
        raise BodyTooLarge(f"the body has {length[:20]} bytes (allowed: {limit})")
    if (length != "0" or "transfer-encoding" in headers) and _is_routed(scope):
        forms = ["multipart/form-data"] if _is_one_of(scope, FORM_ROUTES) else []
        _check_media(headers, ["image/png" if _is_one_of(scope, PNG_ROUTES) else "application/json", *forms])


def max_body(scope: Scope) -> int:
    """The most bytes that the body of a request may have."""
    return MAX_BODY if _is_one_of(scope, PICTURE_ROUTES) else MAX_JSON_BODY


def check_json_size(size: int, members: object) -> None:
    """Refuse a large JSON body without a picture.

    members: the decoded body.

    Raises:
        BodyTooLarge: when it exceeds the limit for JSON, and none of its members is a picture.
    """
    names = members.keys() if isinstance(members, dict) else set()
    if size > MAX_JSON_BODY and names.isdisjoint(PICTURE_MEMBERS):
        raise BodyTooLarge(f"the body has {size} bytes (allowed without a picture: {MAX_JSON_BODY})")


class BodyBudget:
    """The bytes of all bodies in this process, so that many bodies together cannot exhaust its memory."""

    def __init__(self, limit: int = MAX_BUFFERED) -> None:
        self._limit = limit
        self._used = 0

    def body(self, receive: Receive, limit: int) -> LimitedBody:
        """A body of at most `limit` bytes, which counts until it is released."""
        return LimitedBody(self, receive, limit)

    def take(self, size: int) -> bool:
        """Count some bytes; False, and count nothing, when they do not fit."""
        fits = self._used + size <= self._limit
        self._used += size if fits else 0
        return fits

    def give_back(self, size: int) -> None:
        self._used -= size


class LimitedBody:
    """An ASGI `receive` that refuses to read more than `limit` bytes, also of a body without a declared length."""

    def __init__(self, budget: BodyBudget, receive: Receive, limit: int) -> None:
        self._budget = budget
        self._receive = receive
        self._limit = limit
        self._size = 0

    async def receive(self) -> Message:
        # FastAPI turns every exception but HTTPException that is raised while it reads the body into a 400.
        message = await self._receive()
        size = len(message.get("body", b"")) if message["type"] == "http.request" else 0
        if self._size + size > self._limit:
            raise HTTPException(413, f"the body is too large (allowed: {self._limit} bytes)")
        if not self._budget.take(size):
            detail = "too many large bodies are being received; nothing was accepted, try again"
            raise HTTPException(503, detail, headers={"Retry-After": BUSY_SECONDS})
        self._size += size
        return message

    def release(self) -> None:
        """Stop counting the body: its request is over."""
        self._budget.give_back(self._size)
        self._size = 0


def _check_media(headers: Headers, supported: Sequence[str]) -> None:
    codings = [coding.strip().lower() for coding in headers.get("content-encoding", "").split(",")]
    if set(codings) - {"", "identity"}:
        detail = f"Content-Encoding {headers['content-encoding'][:80]!r} is not supported (supported: identity)"
        raise UnsupportedMedia(detail, headers={"Accept-Encoding": "identity"})
    media_type = headers.get("content-type", "")
    if media_type.partition(";")[0].strip().lower() not in supported:
        allowed = " and ".join(supported)
        raise UnsupportedMedia(f"Content-Type {media_type[:80]!r} is not supported (supported: {allowed})")


def _is_one_of(scope: Scope, routes: Collection[tuple[str, str]]) -> bool:
    return scope["type"] == "http" and (scope["method"], scope["path"]) in routes


def _is_routed(scope: Scope) -> bool:
    """Whether a route takes the request's method and path."""
    app = scope.get("app")
    return app is None or any(route.matches(scope)[0] is Match.FULL for route in app.routes)
