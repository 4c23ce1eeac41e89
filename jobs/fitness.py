"""Whether a Redis can hold jobs at all: what no retry would change is found at the start, and by `denoised doctor`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any, cast

import redis

from denoised.jobs import redis_keys as keys
from denoised.jobs.deadline import reachable
from denoised.jobs.errors import StoreRefused, StoreUnfit
from denoised.jobs.memory import Memory
from denoised.jobs.refusals import store_error

# What our programs and RQ do, on keys that exist for a moment only. A right is missing if the reply says so; any other
# error reply shows that the command itself is allowed.
_COMMANDS = (
    "SET s 1 EX 60|GET s|GETRANGE s 0 1|STRLEN s|GETDEL s|EXISTS s|TYPE s|"
    "HSET h a 1|EXPIRE h 60|PERSIST h|HGET h a|HMGET h a|HGETALL h|HKEYS h|HLEN h|HSTRLEN h a|HEXISTS h a|"
    "HINCRBY h a 1|HINCRBYFLOAT h a 1|HDEL h a|"
    "LPUSH l a|RPUSH l b|LPOP l|LREM l 1 a|LLEN l|LRANGE l 0 -1|LPOS l a|"
    "SADD m a|SMEMBERS m|SREM m a|"
    "ZADD z 1 a|ZRANGE z 0 -1|ZREVRANGEBYSCORE z 1 0|ZREMRANGEBYSCORE z 0 1|ZREM z a|"
    "XADD x * a 1|XRANGE x - +|XREVRANGE x + -|XREAD COUNT 1 STREAMS x 0|"
    "EVALSHA 0000000000000000000000000000000000000000 0|EVAL return 0|SCRIPT LOAD return 0|PING|TIME|DEL s h l m z x"
)
_NO_KEY = frozenset({"EVALSHA", "PING", "TIME"})
RIGHTS = "~denoised:* ~rq:* &denoised:* +@read +@write +@stream +@pubsub +@scripting +@transaction +@connection +info"


def check_fitness(client: redis.Redis) -> None:
    """Check that Redis keeps what it is given, is not a cluster, and lets us use every command that we need.

    Raises:
        StoreUnfit: when it does not. The message names the setting to change.
        StoreUnavailable: when it does not answer, or refuses for another reason.
    """
    with reachable():
        info = cast("Mapping[str, Any]", client.info())
    check_mode(info)
    Memory.of(info).check_fitness()
    check_rights(client)


def check_mode(info: Mapping[str, Any]) -> None:
    """Check that this is no node of a cluster. info: the reply to INFO.

    Raises:
        StoreUnfit: when it is, since a job's keys would lie on several nodes.
    """
    if int(info.get("cluster_enabled", 0)):
        raise StoreUnfit(
            "Redis runs in cluster mode (cluster-enabled is yes, allowed: no); use a single Redis or Valkey"
        )


def check_rights(client: redis.Redis) -> None:
    """Check that the Redis user may use the commands, keys and channels that we need.

    Raises:
        StoreUnfit: naming what is missing.
    """
    missing = [*_missing_commands(client), *_missing_transactions(client), *_missing_channels(client)]
    if missing:
        raise StoreUnfit(
            f"the Redis user lacks rights: {', '.join(missing)}; grant them with ACL SETUSER, for example {RIGHTS}"
        )


def _missing_commands(client: redis.Redis) -> Iterator[str]:
    for prefix in ("denoised:", "rq:"):
        probe = f"{prefix}probe:{uuid.uuid4().hex}:"
        commands = [_with_keys(command.split(" "), probe) for command in _COMMANDS.split("|")]
        commands.append(["PUBLISH", keys.CANCELED_CHANNEL, ""])
        commands.append(["PUBLISH", keys.model_channel("probe"), ""])
        with reachable(), client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            replies = pipe.execute(raise_on_error=False)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, redis.exceptions.RedisError) and isinstance(store_error(reply), StoreRefused):
                yield f"{command[0]} on {prefix}*" if command[0] != "PUBLISH" else f"PUBLISH to {command[1]}"


def _with_keys(words: list[str], probe: str) -> list[str]:
    """The words of a command, its keys prefixed."""
    if words[0] == "XREAD":
        return [*words[:4], probe + words[4], words[5]]
    if words[0] == "DEL":
        return [words[0], *(probe + word for word in words[1:])]
    if words[0] in ("EVAL", "SCRIPT"):
        return [*words[:-2], " ".join(words[-2:]), *(["0"] if words[0] == "EVAL" else [])]
    return words if words[0] in _NO_KEY else [words[0], probe + words[1], *words[2:]]


def _missing_transactions(client: redis.Redis) -> Iterator[str]:
    try:
        with reachable(), client.pipeline() as pipe:
            pipe.watch("denoised:probe")
            pipe.multi()
            pipe.exists("denoised:probe")
            pipe.execute()
    except StoreRefused:
        yield "WATCH, MULTI and EXEC"


def _missing_channels(client: redis.Redis) -> Iterator[str]:
    for channel in (keys.CANCELED_CHANNEL, keys.model_channel("probe")):
        try:
            with reachable(), client.pubsub() as pubsub:
                pubsub.subscribe(channel)
                pubsub.get_message(timeout=1.0)
        except StoreRefused:
            yield f"SUBSCRIBE to {channel}"
