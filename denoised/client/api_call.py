"""HTTP calls as data, without a socket.

A *flow* is a generator that yields each `ApiCall` to send and each `Pause` to wait, is sent the outcome of each call,
and returns its result. `Client` and `AsyncClient` drive the same flows, with blocking and with asynchronous I/O.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

T = TypeVar("T")


@dataclass(frozen=True)
class ApiCall:
    """One HTTP request.

    repeatable: sending it twice has the same effect as sending it once.
    timeout: seconds; None = the client's.
    """

    method: str
    path: str
    repeatable: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    timeout: float | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of httpx's `request` and `stream`."""
        named = {"headers": dict(self.headers), "params": dict(self.params), "content": self.content}
        return named if self.timeout is None else {**named, "timeout": self.timeout}


@dataclass(frozen=True)
class Pause:
    """A wait, in seconds."""

    seconds: float


Outcome = httpx.Response | httpx.TransportError
Flow = Generator[ApiCall | Pause, Any, T]
