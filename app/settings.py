"""How the front end behaves: one frozen object, read once from the command line and environment."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_BODY = 8 * 1024 * 1024
# For programs that run torch, unless the environment says otherwise. By default OpenMP's threads spin for about a
# millisecond at each barrier: beside another busy program that made the network 70 times slower (docs/decisions.md).
TORCH_ENVIRONMENT = {"GOMP_SPINCOUNT": "10000"}


@dataclass(frozen=True)
class ApiSettings:
    """Seconds, bytes and counts.

    api_key_hashes: SHA-256 (hex) of each accepted key; none = local programs only.
    allowed_hosts, allowed_origins: accepted beside the local ones.
    """

    redis_url: str = "redis://127.0.0.1:6379/0"
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_hashes: frozenset[str] = field(default_factory=frozenset)
    allowed_hosts: frozenset[str] = field(default_factory=frozenset)
    allowed_origins: frozenset[str] = field(default_factory=frozenset)
    max_wait: float = 60.0
    max_queue: int = 1000
    max_attempts: int = 3
    result_ttl: int = 86_400
