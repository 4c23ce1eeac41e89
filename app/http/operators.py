"""Who may change the service itself: the holder of an operator's key; without API keys, a program on this machine."""

from __future__ import annotations

from starlette.requests import Request

from denoised.app.http.errors import Forbidden
from denoised.app.http.live_keys import LiveKeys
from denoised.app.http.requests.local_hosts import is_local, split_netloc


def check_operator(keys: LiveKeys, owner: str, request: Request) -> None:
    """Check that a caller may change the service.

    Without API keys, the connection must come from this machine and name it as its host. A proxy that serves other
    machines passes on the name by which they call it, and a server on a trusted network sees their addresses.

    Raises:
        Forbidden: if it may not.
    """
    if keys.required:
        if not keys.limits(owner).operator:
            raise Forbidden("this needs an operator's key: one with the option operator in the key file")
        return
    peer = request.client.host if request.client is not None else ""
    host = split_netloc(request.headers.get("host", ""))
    if not is_local(peer) or host is None or not is_local(host[0]):
        raise Forbidden("without API keys, only programs on the server's own machine may do this, through localhost")
