"""URLs of Redis Sentinel: how they are read, whom they lead to, and the errors of those that lead nowhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from denoised.jobs.errors import StoreUnavailable, StoreUnfit
from denoised.jobs.redis.connection import connect
from denoised.jobs.redis.deadline import reachable
from denoised.jobs.redis.fitness import check_fitness
from denoised.jobs.redis.sentinel import RECHECK_SECONDS, SentinelUrl
from tests.replicated_store import SERVICE, ReplicatedStore, client


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicatedStore]:
    with ExitStack() as stack:
        yield ReplicatedStore(tmp_path_factory.mktemp("replicated"), stack)


@pytest.mark.parametrize(
    ("rest", "sentinels", "service", "options", "login"),
    [
        ("a/jobs", [("a", 26379)], "jobs", {"db": 0}, {}),
        ("a:1,b,c:3/my%2Fjobs/2", [("a", 1), ("b", 26379), ("c", 3)], "my/jobs", {"db": 2}, {}),
        ("u:p%40@a:1/jobs", [("a", 1)], "jobs", {"db": 0, "username": "u", "password": "p@"}, {}),
        (":pw@[::1]:1,[::2]/jobs/", [("::1", 1), ("::2", 26379)], "jobs", {"db": 0, "password": "pw"}, {}),
        (
            "a/jobs?sentinel_username=s&sentinel_password=t%26&health_check_interval=3",
            [("a", 26379)],
            "jobs",
            {"db": 0, "health_check_interval": 3},
            {"username": "s", "password": "t&"},
        ),
    ],
)
def test_a_url_names_sentinels_a_service_and_both_logins(
    rest: str, sentinels: Any, service: str, options: dict[str, Any], login: dict[str, str]
) -> None:
    assert SentinelUrl.parse("redis", rest) == SentinelUrl(sentinels, service, login, options, False)
    assert SentinelUrl.parse("rediss", rest).tls


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_tls_applies_to_primary_and_sentinels(scheme: str) -> None:
    plain: Any = connect(f"{scheme}+sentinel://a,b/jobs").connection_pool
    secret: Any = connect(f"{scheme}s+sentinel://a,b/jobs?ssl_ca_certs=/ca.pem").connection_pool
    assert not issubclass(plain.connection_class, redis.SSLConnection)
    assert issubclass(secret.connection_class, redis.SSLConnection)
    assert secret.connection_kwargs["ssl_ca_certs"] == "/ca.pem"
    for sentinel in plain.sentinel_manager.sentinels:
        assert sentinel.connection_pool.connection_class is redis.Connection
    for sentinel in secret.sentinel_manager.sentinels:
        assert sentinel.connection_pool.connection_class is redis.SSLConnection
        assert sentinel.connection_pool.connection_kwargs["ssl_ca_certs"] == "/ca.pem"


@pytest.mark.parametrize("rest", ["a", "a/", "/jobs", "a,/jobs", "a:x/jobs", "a:70000/jobs", "a/jobs/x", "a?b/jobs"])
def test_a_url_that_cannot_be_read_is_refused_without_the_password(rest: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"redis\+sentinel://:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/0") as caught:
        connect(f"redis+sentinel://:hunter2@{rest}")
    assert "hunter2" not in str(caught.value)


def test_a_service_is_found_by_any_sentinel_that_answers(replicated: ReplicatedStore) -> None:
    check_fitness(connect(replicated.url))
    some = connect(replicated.url_of(SERVICE, f"127.0.0.1:9,127.0.0.1:{replicated.sentinel.port}"))
    check_fitness(some)
    info: Any = some.info("server")
    assert info["tcp_port"] == replicated.primary.port


def test_one_right_is_enough_at_the_sentinels(replicated: ReplicatedStore) -> None:
    rules = ("reset", "on", ">few", "+sentinel|masters")
    client(replicated.sentinel).execute_command("ACL", "SETUSER", "reader", *rules)
    url = replicated.url.replace("sentinel_password=s%3Antinel", "sentinel_username=reader&sentinel_password=few")
    check_fitness(connect(url))


def test_a_wrong_service_name_is_an_error_that_lists_the_right_ones(replicated: ReplicatedStore) -> None:
    with pytest.raises(StoreUnfit, match=r"^the sentinels know no service 'other' \(they know: 'denoised'\)") as caught:
        check_fitness(connect(replicated.url_of("other")))
    assert "\n" not in str(caught.value)


def test_without_a_sentinel_the_error_names_each(replicated: ReplicatedStore) -> None:
    expected = r"no sentinel answers: 127\.0\.0\.1:9: .*[Rr]efused.*; 127\.0\.0\.1:10: "
    with pytest.raises(StoreUnavailable, match=expected) as caught:
        check_fitness(connect(replicated.url_of(SERVICE, "127.0.0.1:9,127.0.0.1:10")))
    assert "\n" not in str(caught.value)


def test_a_store_is_no_sentinel_and_a_sentinel_no_store(replicated: ReplicatedStore) -> None:
    address = f"127.0.0.1:{replicated.primary.port}"
    with pytest.raises(StoreUnavailable, match=f"no sentinel answers: {address}: unknown command"):
        check_fitness(connect(f"redis+sentinel://{address}/{SERVICE}?sentinel_password=p%40ss"))
    with pytest.raises(StoreUnfit, match=r"REDIS_URL names a sentinel: write redis\+sentinel://"):
        check_fitness(connect(f"redis://:s%3Antinel@127.0.0.1:{replicated.sentinel.port}"))


def test_wrong_passwords_are_named_and_not_printed(replicated: ReplicatedStore) -> None:
    wrong_there = replicated.url.replace("s%3Antinel", "hunter2")
    wrong_here = replicated.url.replace("p%40ss", "hunter2")
    for wrong, who in ((wrong_there, "no sentinel answers"), (wrong_here, "refuses the login")):
        with pytest.raises((StoreUnavailable, StoreUnfit), match=who) as caught:
            check_fitness(connect(wrong))
        assert "hunter2" not in str(caught.value)


WRITES: list[Callable[[redis.Redis], object]] = [
    lambda store: store.set("key", "1"),
    lambda store: store.eval("return redis.call('SET', KEYS[1], '1')", 1, "key"),
    lambda store: store.pipeline().get("key").eval("return redis.call('SET', KEYS[1], '1')", 1, "key").execute(),
]


@pytest.mark.parametrize("write", WRITES, ids=["command", "script", "script in a transaction"])
def test_a_read_only_reply_leads_to_a_new_lookup(
    write: Callable[[redis.Redis], object], replicated: ReplicatedStore
) -> None:
    """The connection stays open, as when an operator changes the roles without the sentinel."""
    store = connect(replicated.url)
    write(store)
    connections = [store.client_id()]
    demoted = client(replicated.primary)
    demoted.execute_command("REPLICAOF", "127.0.0.1", "9")
    try:
        for _ in range(2):
            with pytest.raises(StoreUnavailable), reachable():
                write(store)
            connections.append(store.client_id())
    finally:
        demoted.execute_command("REPLICAOF", "NO", "ONE")
    assert len(set(connections)) == 3, "each new connection asks the sentinel"
    write(store)
    assert store.client_id() == connections[-1]


def test_open_connections_leave_a_primary_that_the_sentinel_has_replaced(tmp_path: Path) -> None:
    """It is alive and believes that it is the primary, like one that was frozen."""
    with ExitStack() as stack:
        replicated = ReplicatedStore(tmp_path, stack)
        store = connect(replicated.url)
        listening = stack.enter_context(store.pubsub())
        listening.subscribe("news")
        assert listening.get_message(timeout=5.0)["type"] == "subscribe"  # type: ignore[index]
        assert store.set("where", "there")
        client(replicated.replica).execute_command("REPLICAOF", "NO", "ONE")
        sentinel = client(replicated.sentinel)
        sentinel.execute_command("SENTINEL", "REMOVE", SERVICE)
        sentinel.execute_command("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", replicated.replica.port, 1)
        time.sleep(RECHECK_SECONDS + 0.1)
        info: Any = store.info("server")
        assert info["tcp_port"] == replicated.replica.port
        with pytest.raises(redis.exceptions.ConnectionError):
            listening.get_message(timeout=1.0)


def test_without_sentinels_open_connections_stay(tmp_path: Path) -> None:
    with ExitStack() as stack:
        replicated = ReplicatedStore(tmp_path, stack)
        store = connect(replicated.url)
        connection = store.client_id()
        replicated.sentinel.end()
        time.sleep(RECHECK_SECONDS + 0.1)
        assert store.client_id() == connection
