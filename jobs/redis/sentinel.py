"""Clients of the primary that Redis Sentinel names, over a failover and back.

A new connection asks the sentinels first, as https://valkey.io/topics/sentinel-clients/ describes. When the primary's
address has changed, the pool drops its idle connections.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import redis
from redis.connection import parse_url
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from denoised.jobs.redis.refusals import connection_problem, error_code

SUFFIX = "+sentinel"  # of a URL's scheme
PORT = 26379
RECHECK_SECONDS = 1.0
LATER_SECONDS = 10.0  # after a failed check
_LOGIN = {"sentinel_username": "username", "sentinel_password": "password"}


class UnknownService(MasterNotFoundError):
    """A sentinel answers, but none of them monitors a service of this name."""


@dataclass(frozen=True)
class SentinelUrl:
    """redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]…]/SERVICE[/DB][?OPTIONS], read.

    sentinels: their hosts and ports.
    login: user and password of the sentinels, where they have any.
    options: of the connections to the primary, as redis-py names them.
    tls: whether primary and sentinels are reached with TLS.
    """

    sentinels: Sequence[tuple[str, int]]
    service: str
    login: Mapping[str, str]
    options: Mapping[str, Any]
    tls: bool

    @classmethod
    def parse(cls, scheme: str, rest: str) -> SentinelUrl:
        """Read a URL. scheme: "redis" or "rediss"; rest: what follows `://`.

        Raises:
            ValueError: if it cannot be read.
        """
        network, _, path = rest.partition("/")
        login, _, hosts = network.rpartition("@")
        name, _, query = path.partition("?")
        service, _, db = name.partition("/")
        if not service or (db and not db.isdecimal()):
            raise ValueError("no service, or no number of a database")
        given = dict(parse_url(f"{scheme}://{login}@primary/{db or 0}?{query}"))
        options = {name: value for name, value in given.items() if name not in ("host", "connection_class")}
        sentinel_login = {name: options.pop(option) for option, name in _LOGIN.items() if option in options}
        sentinels = [_address(host) for host in hosts.split(",")]
        return cls(sentinels, unquote(service), sentinel_login, options, scheme == "rediss")

    def connect(self, timeout: float, **options: Any) -> redis.Redis:
        """A client of the primary, which is looked up for each new connection.

        timeout: seconds for a command of the primary, and for asking all sentinels once.
        options: of each connection.
        """
        tls = {name: value for name, value in self.options.items() if name.startswith("ssl_")} | {"ssl": self.tls}
        sentinels = SentinelLookup(
            self.sentinels,
            {**options, **_timeouts(timeout / len(self.sentinels)), **self.login, **tls, "health_check_interval": 0},
        )
        pool = PrimaryPool(
            self.service,
            sentinels,
            connection_class=TlsPrimaryConnection if self.tls else PrimaryConnection,
            **{**options, **_timeouts(timeout), **self.options},
        )
        return redis.Redis.from_pool(pool)


def _timeouts(seconds: float) -> dict[str, float]:
    return {"socket_timeout": seconds, "socket_connect_timeout": seconds}


def _address(host: str) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname or parts.query or parts.fragment:
        raise ValueError("no host")
    return parts.hostname, PORT if parts.port is None else parts.port


class SentinelLookup(Sentinel):
    """Asks the sentinels in turn, first the one that answered last. Threads may share it.

    options: of the connections to them.
    """

    def __init__(self, sentinels: Sequence[tuple[str, int]], options: Mapping[str, Any]) -> None:
        super().__init__(sentinels, sentinel_kwargs=dict(options))  # type: ignore[no-untyped-call]
        self._first = 0

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """The host and port of a service's primary.

        Raises:
            UnknownService: when the sentinels that answer do not know it.
            MasterNotFoundError: when no sentinel answers, or none sees a primary that is up.
        """
        problems: list[str] = []
        known: set[str] = set()
        first = self._first
        for number in [*range(first, len(self.sentinels)), *range(first)]:
            try:
                states = cast("dict[str, Any]", self.sentinels[number].sentinel_masters())
            except redis.exceptions.RedisError as error:
                problems.append(f"{_shown(self.sentinels[number])}: {connection_problem(error)}")
                continue
            self._first = number
            state = states.get(service_name)
            if state and state["is_master"] and not state["is_sdown"] and not state["is_odown"]:
                return state["ip"], state["port"]
            known |= states.keys()
        if len(problems) == len(self.sentinels):
            raise MasterNotFoundError(f"no sentinel answers: {'; '.join(problems)}")
        if service_name not in known:
            others = ", ".join(map(repr, sorted(known))) or "none"
            raise UnknownService(f"the sentinels know no service {service_name!r} (they know: {others})")
        raise MasterNotFoundError(f"the sentinels see no primary of {service_name!r} that is up")


def _shown(sentinel: redis.Redis) -> str:
    given = sentinel.connection_pool.connection_kwargs
    return f"{given['host']}:{given['port']}"


class PrimaryPool(SentinelConnectionPool):
    """Connections to the primary. It asks for the address again while they are in use, once in `RECHECK_SECONDS`.

    A primary that was paused, or cut off, accepts writes until the sentinels have demoted it, seconds after it is back.
    What is written there by then is lost.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._rechecking = threading.Lock()
        self._recheck_at = 0.0

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        if time.monotonic() >= self._recheck_at and self._rechecking.acquire(blocking=False):
            try:
                self._recheck()
            finally:
                self._rechecking.release()
        return super().get_connection(*args, **kwargs)

    def _recheck(self) -> None:
        """Close the connections to other addresses than the primary's; who reads from one gets an error."""
        if self.master_address is None:
            return
        proxy: Any = self.proxy
        self._recheck_at = time.monotonic() + RECHECK_SECONDS
        try:
            address = proxy.get_master_address()  # closes the idle ones
        except redis.exceptions.RedisError:  # no sentinel answers: what is connected may still work
            self._recheck_at = time.monotonic() + LATER_SECONDS
            return
        with self._lock:
            sockets = [each._sock for each in self._in_use_connections if (each.host, each.port) != address]
        for each in sockets:
            if each is not None:
                with contextlib.suppress(OSError):
                    # Not `disconnect`, and not `shutdown` of TLS: other threads read from them.
                    socket.socket.shutdown(each, socket.SHUT_RDWR)


class PrimaryConnection(SentinelManagedConnection):
    """A connection that is replaced after a reply READONLY, also from within a transaction or a script."""

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            response = super().read_response(*args, **kwargs)
        except redis.exceptions.ResponseError as error:
            self._check(error)
            raise
        for each in response if isinstance(response, list) else ():
            self._check(each)
        return response

    def _check(self, reply: object) -> None:
        connection: Any = self  # redis-py's method has no type hints
        if isinstance(reply, redis.exceptions.ResponseError) and error_code(reply) == "READONLY":
            connection.mark_for_reconnect()


class TlsPrimaryConnection(PrimaryConnection, SentinelManagedSSLConnection):
    """The same with TLS."""
