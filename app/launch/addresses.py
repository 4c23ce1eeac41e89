"""Addresses that a server listens on."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from denoised.app.http.requests.local_hosts import normalized

LOOPBACK = {4: "127.0.0.1", 6: "::1"}  # by IP version


def local_url(host: str, port: int) -> str:
    """The URL at which programs on this machine reach a server that listens on `host`."""
    name = normalized(host.strip("[]"))
    try:
        address = ip_address(name)
    except ValueError:
        return f"http://{name}:{port}"
    if address.is_unspecified:  # 0.0.0.0 and :: mean every address
        address = ip_address(LOOPBACK[address.version])
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket bound to an address, as the server uses it. Of a name's addresses, IPv4 comes first.

    Raises:
        OSError: if the host is unknown or not this machine's, or if the port is in use or not allowed.
    """
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def check_bindable(host: str, port: int) -> None:
    """Bind and listen briefly: with SO_REUSEADDR, only the second finds another server that has bound the port.

    Raises:
        OSError: as `bind_socket`.
    """
    with bind_socket(host, port) as probe:
        probe.listen(1)
