"""Addresses that a server listens on."""

from __future__ import annotations

import socket


def local_url(host: str, port: int) -> str:
    """The URL at which programs on this machine reach a server that listens on `host`."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def bind_briefly(host: str, port: int) -> None:
    """Bind a socket to a port and close it again.

    Raises:
        OSError: if the port cannot be bound.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
