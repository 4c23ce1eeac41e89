"""A Redis that we cannot work with is refused at the start, in one line that says what to change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from denoised.jobs.errors import StoreUnavailable, StoreUnfit
from denoised.jobs.redis.connection import connect
from denoised.jobs.redis.fitness import COMMANDS, SHOWN, check_fitness, check_mode, check_version

Grant = Callable[..., redis.Redis]


@pytest.fixture
def grant(valkey_url: str, client: redis.Redis) -> Iterator[Grant]:
    """`grant("~*", "+@all")`: a client whose user has these rights."""
    clients = []

    def grant(*rules: str) -> redis.Redis:
        client.execute_command("ACL", "SETUSER", "shop", "reset", "on", ">pw", *rules)
        clients.append(connect(f"{valkey_url}?username=shop&password=pw", timeout=5.0))
        return clients[-1]

    yield grant
    for each in clients:
        each.close()
    client.execute_command("ACL", "DELUSER", "shop")


def refusal(client: redis.Redis) -> str:
    with pytest.raises(StoreUnfit) as caught:
        check_fitness(client)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_fit_redis_is_checked_without_a_trace(client: redis.Redis, grant: Grant) -> None:
    check_fitness(client)
    check_fitness(grant("~denoised:*", "~rq:*", "&denoised:*", "&rq:*", "+@all", "-@admin", "-@dangerous", "+info"))
    assert client.keys("*") == []


@pytest.mark.parametrize("command", sorted({command[0].lower() for command in COMMANDS}))
def test_a_missing_right_is_named(command: str, grant: Grant) -> None:
    assert f"lacks the rights for {command.upper()}" in refusal(grant("~*", "&*", "+@all", f"-{command}"))


@pytest.mark.parametrize("command", ["watch", "multi", "exec", "unwatch"])
def test_a_user_without_transactions_changes_nothing(command: str, grant: Grant, client: redis.Redis) -> None:
    assert command.upper() in refusal(grant("~*", "&*", "+@all", f"-{command}"))
    assert client.keys("*") == []


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (["~denoised:*", "&*", "+@all"], "rq:job:check"),
        (["~rq:*", "&*", "+@all"], "denoised:job:check"),
        (["~denoised:job:*", "~rq:*", "&*", "+@all"], "denoised:models"),
        (["~*", "resetchannels", "+@all"], "PUBLISH denoised:canceled"),
        (["~*", "&denoised:canceled", "+@all"], "PUBLISH denoised:model:check"),
        (["%R~denoised:*", "~rq:*", "&*", "+@all"], "GETDEL denoised:job:check"),
        (["~*", "&*", "-@all"], "WATCH"),
    ],
)
def test_a_missing_key_or_channel_is_named(rules: list[str], named: str, grant: Grant) -> None:
    message = refusal(grant(*rules))
    assert named in message
    assert "ACL SETUSER shop ~denoised:* ~rq:*" in message
    assert len(re.findall(":check", message)) <= SHOWN


def test_a_wrong_password_is_named_and_not_printed(valkey_url: str, client: redis.Redis) -> None:
    message = refusal(connect(f"{valkey_url}?username=nobody&password=hunter2"))
    assert "REDIS_URL" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("version", "fit"), [("5.0.14", False), ("6.0.16", False), ("6.2.0", True), ("7.4.1", True), ("10.0.0", True)]
)
def test_an_old_version_is_refused(version: str, fit: bool) -> None:
    if fit:
        check_version({"redis_version": version})
        return
    with pytest.raises(StoreUnfit, match=f"Redis {version} is too old"):
        check_version({"redis_version": version})


@pytest.mark.parametrize("info", [{"cluster_enabled": 1}, {"redis_mode": "cluster"}])
def test_cluster_mode_is_refused(info: dict[str, Any]) -> None:
    check_mode({"cluster_enabled": 0, "redis_mode": "standalone"})
    with pytest.raises(StoreUnfit, match="cluster mode, which is not supported"):
        check_mode(info)


def test_a_redis_that_does_not_answer_is_not_unfit() -> None:
    with pytest.raises(StoreUnavailable):
        check_fitness(connect("redis://127.0.0.1:9/0"))


@pytest.mark.parametrize(
    ("url", "host", "encrypted"),
    [
        ("redis://:pw@store:7000/2", "store", False),
        ("valkey://:pw@store:7000/2", "store", False),
        ("rediss://:pw@store:7000/2", "store", True),
        ("valkeys://:pw@store:7000/2", "store", True),
    ],
)
def test_the_urls_of_redis_and_of_valkey_mean_the_same(url: str, host: str, encrypted: bool) -> None:
    pool = connect(url).connection_pool
    given = {name: pool.connection_kwargs[name] for name in ("host", "port", "db", "password")}
    assert given == {"host": host, "port": 7000, "db": 2, "password": "pw"}
    assert issubclass(pool.connection_class, redis.SSLConnection) is encrypted


def test_an_unknown_scheme_is_refused_without_the_password() -> None:
    with pytest.raises(StoreUnavailable, match="valkey://") as caught:
        connect("http://:hunter2@store")
    assert "hunter2" not in str(caught.value)
