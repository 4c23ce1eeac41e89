"""Whether a Redis is one that we can work with: what `api`, `worker` and `doctor` check at the start.

What is found here stays until an operator changes it: the password, the version, cluster mode, the eviction policy and
the rights of the user. A Redis that cannot be reached now is not among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import redis

from denoised.jobs.errors import StoreUnfit
from denoised.jobs.redis.deadline import reachable
from denoised.jobs.redis.memory import Memory
from denoised.jobs.redis.sentinel import UnknownService
from denoised.jobs.store import redis_keys as keys

OLDEST_VERSION = (6, 2)  # LMOVE, GETDEL
SHOWN = 3  # refused commands in a message
_JOB, _RQ = "denoised:job:check", "rq:job:check"
# Every command that we or RQ send, with a key of each kind, as they were recorded with MONITOR.
COMMANDS: tuple[tuple[str, ...], ...] = (
    *((name, _JOB) for name in ("EXISTS", "GET", "GETDEL", "MGET", "DEL", "HGETALL", "HKEYS", "SMEMBERS", "LLEN")),
    *((name, key) for name in ("STRLEN", "HLEN", "TYPE", "LPOP") for key in (_JOB, _RQ)),
    *((name, _RQ) for name in ("EXISTS", "GET", "DEL", "HGETALL", "SMEMBERS", "PERSIST", "TTL")),
    *((name, key, "x") for name in ("HGET", "HEXISTS", "HDEL", "HMGET", "SREM", "ZREM", "LPOS") for key in (_JOB, _RQ)),
    *((name, key, "x") for name in ("SADD", "LPUSH", "RPUSH") for key in (_JOB, _RQ)),
    *((name, key, "0", "-1") for name in ("LRANGE", "ZRANGE") for key in (_JOB, _RQ)),
    *(("SET", key, "") for key in (keys.MODELS, keys.ENDS, keys.ENGINE_TOTALS, keys.JOB_TOTALS, keys.jobs("check"))),
    *(("SET", key, "") for key in (keys.worker("check"), keys.counted("check"), keys.wake("check"))),
    *(
        ("SET", key, "")
        for key in (keys.ticket("check"), keys.idempotency("check", "check"), _JOB, keys.image("check", 0))
    ),
    *(("SET", f"rq:{kind}check", "") for kind in ("queue:", "worker:", "workers:", "wip:", "execution:")),
    *(("SET", f"rq:{kind}check", "") for kind in ("executions:", "finished:", "failed:")),
    *(("SADD", key, "x") for key in ("rq:queues", "rq:workers", keys.WORKERS)),
    *(("HSET", key, "x", "1") for key in (_JOB, _RQ)),
    *(("EXPIRE", key, "1") for key in (_JOB, _RQ)),
    ("HINCRBY", _JOB, "x", "1"),
    ("HINCRBYFLOAT", _JOB, "x", "1"),
    ("LREM", "rq:queue:check", "0", "x"),
    ("LMOVE", "rq:queue:check", "rq:queue:check:intermediate", "LEFT", "RIGHT"),
    ("ZADD", _JOB, "1", "x"),
    ("ZSCORE", _JOB, "x"),
    ("ZREVRANGE", _JOB, "0", "0"),
    ("ZCARD", _JOB),
    ("LLEN", _RQ),
    ("LINDEX", _RQ, "0"),
    ("ZADD", _RQ, "1", "x"),
    ("ZREVRANGEBYSCORE", _JOB, "1", "0"),
    ("ZRANGEBYSCORE", _JOB, "0", "1"),
    ("ZPOPMIN", _JOB),
    ("ZREMRANGEBYSCORE", _JOB, "0", "1"),
    ("XADD", _JOB, "*", "x", "1"),
    ("XRANGE", _JOB, "-", "+"),
    ("XREVRANGE", _JOB, "+", "-"),
    ("XREAD", "STREAMS", _JOB, "0"),
    ("GETRANGE", _JOB, "0", "1"),
    ("HSTRLEN", _JOB, "x"),
    ("EVAL", "return 1", "1", _JOB),
    ("SCRIPT", "LOAD", "return 1"),
    ("EVALSHA", "0" * 40, "1", _JOB),
    ("PUBLISH", keys.CANCELED_CHANNEL, ""),
    ("PUBLISH", keys.model_channel("check"), ""),
    ("SUBSCRIBE", keys.CANCELED_CHANNEL),
    ("SUBSCRIBE", keys.model_channel("check")),
    ("PING",),
    ("TIME",),
    ("INFO",),
)


def check_fitness(client: redis.Redis) -> None:
    """Check that a Redis keeps what it is given and allows what we need.

    Raises:
        StoreUnfit: if it does not; the message says what to change.
        StoreUnavailable: if it does not answer.
    """
    with reachable():
        try:
            check_rights(client)
            info = cast("Mapping[str, Any]", client.info("default"))
        except redis.exceptions.AuthenticationError as error:
            raise StoreUnfit(
                f"Redis refuses the login ({error}): correct the user and password in REDIS_URL"
            ) from error
        except UnknownService as error:
            raise StoreUnfit(f"{error}: correct the service's name in REDIS_URL") from error
        except redis.exceptions.NoPermissionError as error:
            raise StoreUnfit(f"Redis refuses a command ({error}): allow it with ACL SETUSER") from error
    check_version(info)
    check_mode(info)
    Memory.of(info).check_fitness()


def check_version(info: Mapping[str, Any]) -> None:
    """Check the version in a reply to INFO.

    Raises:
        StoreUnfit: if it is too old.
    """
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise StoreUnfit(f"Redis {version} is too old: use Redis {oldest} or newer, or Valkey")


def check_mode(info: Mapping[str, Any]) -> None:
    """Check the mode in a reply to INFO.

    Raises:
        StoreUnfit: for a node of a cluster, whose scripts and transactions cannot span our keys, and for a sentinel,
            which stores nothing.
    """
    if "sentinel" in (info.get("redis_mode"), info.get("server_mode")):  # of Redis, of Valkey
        raise StoreUnfit("REDIS_URL names a sentinel: write redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/0")
    if int(info.get("cluster_enabled", 0)) or info.get("redis_mode") == "cluster":
        raise StoreUnfit(
            "Redis runs in cluster mode, which is not supported: use a single Redis, with or without replicas"
        )


def check_rights(client: redis.Redis) -> None:
    """Check that the user of the connection may send every command of `COMMANDS`, without an effect.

    Redis checks the rights when a transaction queues a command, and the transaction is never executed.

    Raises:
        StoreUnfit: names the commands that are not allowed.
        redis.exceptions.RedisError: as the client raises it.
    """
    connection: Any = client.connection_pool.get_connection()
    try:
        refused = _refused(connection, [("WATCH", _JOB), ("UNWATCH",), ("MULTI",), ("EXEC",), ("MULTI",)])
        refused += [] if refused else _refused(connection, COMMANDS)
    finally:
        connection.disconnect()  # discards the transaction
        client.connection_pool.release(connection)
    if refused:
        names = ", ".join(refused[:SHOWN]) + (f" and {len(refused) - SHOWN} more" if len(refused) > SHOWN else "")
        user = connection.username or "default"
        raise StoreUnfit(
            f"Redis user {user!r} lacks the rights for {names}: "
            f"ACL SETUSER {user} ~denoised:* ~rq:* &denoised:* &rq:* +@all -@admin -@dangerous +info"
        )


def _refused(connection: Any, commands: Sequence[tuple[str, ...]]) -> list[str]:
    """The commands that are refused for lack of rights."""
    connection.send_packed_command(connection.pack_commands(commands))
    refused = []
    for command in commands:
        try:
            connection.read_response()
        except redis.exceptions.ResponseError as error:  # others than these: the arguments do not matter
            if isinstance(error, redis.exceptions.NoPermissionError) or "no permissions" in str(error):  # EXECABORT
                refused.append(" ".join(command[:2]))
    return refused
