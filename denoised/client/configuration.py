"""Which server to call, and with which API key."""

from __future__ import annotations

import os

from denoised.client.errors import ServiceError

DEFAULT_URL = "http://127.0.0.1:8000"


def resolve_server(url: str | None, key: str | None) -> tuple[str, dict[str, str]]:
    """The server's URL and the headers of every call. The environment provides what is not given.

    Raises:
        ServiceError: if the key cannot be sent in a header. The message does not contain it.
    """
    url = url or os.environ.get("DENOISED_URL") or DEFAULT_URL
    key = os.environ.get("DENOISED_API_KEY") if key is None else key
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ServiceError("the API key has characters that cannot be sent in a header (allowed: ASCII without spaces)")
    return url, {"Authorization": f"Bearer {key}"} if key else {}
