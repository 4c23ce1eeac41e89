"""The addresses of a receiver, resolved once per attempt and checked before anything connects to them."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052; its last 32 bits are an IPv4 address

Address = tuple[socket.AddressFamily, Any]


class RefusedAddress(Exception):
    """The host has an address that no webhook may be sent to."""


def resolve_host(host: str, port: int, *, private: bool) -> list[Address]:
    """The addresses of a host, each with its family, in the resolver's order. Blocking.

    private: whether they may belong to a private network or to this machine.

    Raises:
        OSError: when the host has none.
        RefusedAddress: when one of them is private, although they may not be.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not private and not all(is_public(str(address[0])) for *_, address in found):
        raise RefusedAddress("the host has a private address (allowed: public addresses)")
    return [(family, address) for family, _, _, _, address in found]


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet, whatever IPv4 address is embedded in it."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        embedded = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in NAT64:
            embedded.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        if not all(each is None or is_public(str(each)) for each in embedded):
            return False
        if address.ipv4_mapped is not None:
            return True
    return address.is_global and not address.is_multicast
