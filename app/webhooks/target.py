"""The URL of a webhook, and the origins that the operator allows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

PORTS = {"https": 443, "http": 80}
PRINTABLE = re.compile(r"[!-\[\]-~]+")  # ASCII without space and backslash, which programs read differently


@dataclass(frozen=True)
class WebhookTarget:
    """Where a webhook goes.

    Attributes:
        scheme: https or http.
        host: In lower case; an IPv6 address without brackets.
        path: With the query.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> WebhookTarget:
        """Read a URL.

        Raises:
            ValueError: for anything but an http or https URL of printable ASCII, without user name and fragment.
        """
        if not PRINTABLE.fullmatch(url):
            raise ValueError(
                "it has characters that a URL cannot contain (allowed: printable ASCII without space and \\)"
            )
        parts = urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            raise ValueError("it is not an https URL")
        if "@" in parts.netloc or "#" in url:
            raise ValueError("it has a user name or a fragment (allowed: none)")
        if parts.port == 0:
            raise ValueError("its port is 0 (allowed: 1 … 65535)")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.scheme, parts.hostname, parts.port or PORTS[parts.scheme], path)

    @property
    def authority(self) -> str:
        """Host and port as the `Host` header has them: without the scheme's own port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port; webhooks of one origin share a queue."""
        return f"{self.scheme}://{self.authority}"

    @property
    def url(self) -> str:
        """The URL in the form that is stored: it begins with `origin`."""
        return self.origin + self.path


def allowed_origin(text: str) -> str:
    """An origin from a setting: `host`, `host:port` (https), or `http://host:port`.

    Raises:
        ValueError: if it is not an origin.
    """
    target = WebhookTarget.parse(text.lower() if "://" in text else f"https://{text.lower()}")
    if target.path != "/":
        raise ValueError("it has a path (allowed: a host, host:port, or http://host:port)")
    return target.origin
