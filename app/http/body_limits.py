"""Which request bodies are accepted: framing, media type and size."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

from denoised.app.http.errors import BadRequest, BodyTooLarge, UnsupportedMedia
from denoised.app.settings import MAX_BODY

PNG_ROUTES = {("POST", "/verify")}  # (method, path); every other route reads JSON
MAX_LENGTH_DIGITS = 15  # of a Content-Length; longer ones are not converted to a number


def check_framing(headers: Headers) -> None:
    """Refuse a body with two lengths: a proxy in front of us may believe the other one (RFC 9112, 6.1).

    Raises:
        BadRequest: and the connection is closed.
    """
    if "content-length" in headers and "transfer-encoding" in headers:
        detail = "Content-Length and Transfer-Encoding were both given (allowed: one of them)"
        raise BadRequest(detail, headers={"Connection": "close"})


def check_body(scope: Scope, headers: Headers) -> None:
    """Refuse a body by its headers, before it is read.

    Raises:
        BodyTooLarge: when its declared length exceeds MAX_BODY bytes.
        UnsupportedMedia: when its media type is not the one that the route reads.
    """
    length = headers.get("content-length", "0")
    if length.isdecimal() and (len(length) > MAX_LENGTH_DIGITS or int(length) > MAX_BODY):
        raise BodyTooLarge(f"the body has {length[:20]} bytes (allowed: {MAX_BODY})")
    has_body = length != "0" or "transfer-encoding" in headers
    media_type = headers.get("content-type", "")
    supported = _supported_media_type(scope)
    if has_body and media_type.partition(";")[0].strip().lower() != supported:
        raise UnsupportedMedia(f"Content-Type {media_type[:80]!r} is not supported (supported: {supported})")


def limited(receive: Receive) -> Receive:
    """Wrap `receive` so that it refuses to read more than MAX_BODY bytes, also of a body without a length."""
    size = 0

    async def receive_limited() -> Message:
        nonlocal size
        message = await receive()
        if message["type"] == "http.request":
            size += len(message.get("body", b""))
        if size > MAX_BODY:
            # FastAPI turns every other exception that is raised while it reads the body into a 400.
            raise HTTPException(413, f"the body is too large (allowed: {MAX_BODY} bytes)")
        return message

    return receive_limited


def _supported_media_type(scope: Scope) -> str:
    png = scope["type"] == "http" and (scope["method"], scope["path"]) in PNG_ROUTES
    return "image/png" if png else "application/json"
