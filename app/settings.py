"""How the front end behaves: one frozen object, read once from the command line and environment."""

from __future__ import annotations

from dataclasses import dataclass, field

from denoised.app.http.api_keys import KeyRing

MAX_BODY = 8 * 1024 * 1024
# For programs that run torch, unless the environment says otherwise. By default OpenMP's threads spin for about a
# millisecond at each barrier: beside another busy program that made the network 70 times slower (docs/decisions.md).
TORCH_ENVIRONMENT = {"GOMP_SPINCOUNT": "10000"}


@dataclass(frozen=True)
class ApiSettings:
    """Seconds, bytes and counts.

    api_keys: hashes of the accepted keys; none = local programs only.
    allowed_hosts, allowed_origins: accepted beside the local ones.
    max_queue: jobs that may wait; queue_limit, queue_limit_per_key: network evaluations that may.
    """

    redis_url: str = "redis://127.0.0.1:6379/0"
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: KeyRing = field(default_factory=KeyRing)
    allowed_hosts: frozenset[str] = field(default_factory=frozenset)
    allowed_origins: frozenset[str] = field(default_factory=frozenset)
    max_wait: float = 60.0
    max_queue: int = 1000
    queue_limit: int = 100_000
    queue_limit_per_key: int = 50_000
    max_attempts: int = 3
    result_ttl: int = 86_400
