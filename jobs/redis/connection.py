"""Redis clients with short timeouts and no retries of their own."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.redis.sentinel import SUFFIX, SentinelUrl

REDIS_URLS = (
    "redis://:PASSWORD@HOST:PORT/0, rediss://… with TLS, valkey://…, valkeys://…, unix://PATH or "
    "redis+sentinel://:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/0; "
    "write / @ : ? # % in the password, and ? # % in the path, as %2F and so on"
)


SCHEMES = {"valkey": "redis", "valkeys": "rediss"}  # Valkey's names of the same


def connect(url: str, timeout: float = 1.0, connections: int = 64) -> redis.Redis:
    """A client that gives up after `timeout` seconds and never retries by itself.

    With a URL of Sentinel (`jobs.redis.sentinel`), it is one of the primary of the moment.

    Raises:
        StoreUnavailable: for an invalid URL. The message does not repeat it, since it may hold a password.
    """
    scheme, separator, rest = url.partition("://")
    plain = scheme.removesuffix(SUFFIX)
    plain = SCHEMES.get(plain, plain)
    # No handshake on a new connection: each command more would be one more to wait for.
    options: dict[str, Any] = {"protocol": 2, "driver_info": None}
    options |= {"max_connections": connections, "health_check_interval": 15, "retry": Retry(NoBackoff(), 0)}
    try:
        if scheme.endswith(SUFFIX):
            return SentinelUrl.parse(plain, rest).connect(timeout, **options)
        return redis.Redis.from_url(
            f"{plain}{separator}{rest}", socket_timeout=timeout, socket_connect_timeout=timeout, **options
        )
    except ValueError:
        raise StoreUnavailable(f"the Redis URL cannot be read (allowed: {REDIS_URLS})") from None
