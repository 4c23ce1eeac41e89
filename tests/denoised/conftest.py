"""The client's tests run against the front end that `tests/app` starts."""

from tests.app.conftest import (
    _shared_server,
    card_of,
    fake_worker,
    make_client,
    missing_redis_url,
    request_of,
    start_server,
    url,
)

__all__ = [
    "_shared_server",
    "card_of",
    "fake_worker",
    "make_client",
    "missing_redis_url",
    "request_of",
    "start_server",
    "url",
]
