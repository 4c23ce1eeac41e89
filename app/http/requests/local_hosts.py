"""Which host names mean this machine: the one answer for `--host`, for Host and Origin headers, and for URLs."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

# host or host:port, as RFC 9112 3.2 has it in a Host header; an IPv6 address is in brackets (RFC 3986 3.2.2).
NETLOC = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:@/?#\s\\]+))(?::(?P<port>[0-9]{0,5}))?")
LOCALHOST = "localhost"
MAX_PORT = 65_535


def split_netloc(netloc: str) -> tuple[str, int | None] | None:
    """Name and port of a Host header or of a URL's authority; None if it is malformed.

    The name is in lower case, without brackets and without the dot that ends an absolute name.
    """
    match = NETLOC.fullmatch(netloc)
    if match is None or (match["v6"] and ":" not in match["v6"]):
        return None
    port = int(match["port"]) if match["port"] else None
    return (normalized(match["v6"] or match["name"]), port) if port is None or port <= MAX_PORT else None


def normalized(name: str) -> str:
    """A host name or address in the form in which it is compared."""
    plain = name.lower() if name.endswith("..") else name.lower().removesuffix(".")
    try:
        return str(ip_address(plain))
    except ValueError:
        return plain


def is_local(name: str) -> bool:
    """Whether a name is `localhost` or a loopback address: 127.0.0.0/8, ::1, or the former as an IPv6 address."""
    plain = normalized(name)
    if plain == LOCALHOST:
        return True
    try:
        address = ip_address(plain)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
