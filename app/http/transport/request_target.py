"""The absolute form of a request's target, `GET http://host/path`, in which programs speak to proxies."""

from __future__ import annotations

import re

import h11

# scheme://authority, then a path or a query (RFC 9112, 3.2.2). A server must accept this form.
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([^#]*)", re.I)


def to_origin_form(request: h11.Request) -> h11.Request:
    """The same request with a path as its target, and with the target's authority as its Host.

    Raises:
        h11.RemoteProtocolError: if the target names no host.
    """
    match = _ABSOLUTE.fullmatch(request.target)
    if match is None:
        return request
    authority, rest = match.groups()
    if not authority or b"@" in authority:  # RFC 9110, 4.2.1 and 4.2.4
        raise h11.RemoteProtocolError("the target has no host, or a user name")
    headers = [(name, value) for name, value in request.headers if name != b"host"]
    return h11.Request(
        method=request.method,
        target=rest if rest.startswith(b"/") else b"/" + rest,
        headers=[(b"host", authority), *headers],
        http_version=request.http_version,
    )
