"""Redis clients with short timeouts and no retries of their own."""

from __future__ import annotations

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from denoised.jobs.errors import StoreUnavailable

REDIS_URLS = (
    "redis://:PASSWORD@HOST:PORT/0, rediss://… with TLS, valkey://…, valkeys://… or unix://PATH; "
    "write / @ : ? # % in the password, and ? # % in the path, as %2F and so on"
)


SCHEMES = {"valkey://": "redis://", "valkeys://": "rediss://"}  # Valkey's names of the same


def connect(url: str, timeout: float = 1.0, connections: int = 64) -> redis.Redis:
    """A client that gives up after `timeout` seconds and never retries by itself.

    Raises:
        StoreUnavailable: for an invalid URL. The message does not repeat it, since it may hold a password.
    """
    scheme, separator, rest = url.partition("://")
    try:
        return redis.Redis.from_url(
            SCHEMES.get(scheme + separator, scheme + separator) + rest,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            max_connections=connections,
            health_check_interval=15,
            retry=Retry(NoBackoff(), 0),
            # No handshake on a new connection: each command more would be one more to wait for.
            protocol=2,
            driver_info=None,
        )
    except ValueError:
        raise StoreUnavailable(f"the Redis URL cannot be read (allowed: {REDIS_URLS})") from None
