"""Every error reply that Redis and Valkey document, and what it means to us."""

from __future__ import annotations

import pytest
import redis
from redis._parsers.base import BaseParser

from denoised.jobs.errors import RecordError, StoreError, StoreFull, StoreRefused, StoreUnavailable
from denoised.jobs.redis.deadline import reachable
from denoised.jobs.redis.refusals import error_code, store_error
from tests.refusals import ALL

NOT_NOW, FULL, NEVER, DAMAGED = StoreUnavailable, StoreFull, StoreRefused, RecordError
KINDS: dict[str, type[StoreError]] = {
    "not now": NOT_NOW,
    "full": FULL,
    "never": NEVER,
}
DAMAGES = [
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "ERR value is not an integer or out of range",
    "ERR hash value is not a float",
    "ERR The ID specified in XADD is equal or smaller than the target stream top item",
    "ERR user_script:3: attempt to compare nil with number script: f_1, on @user_script:3.",
    "ERR Error running script (call to f_1): @user_script:1: WRONGTYPE Operation against a key",
    "WRONGTYPE Operation against a key holding the wrong kind of value script: f_1, on @user_script:2.",
]


def parsed(reply: str) -> redis.exceptions.RedisError:
    error: redis.exceptions.RedisError = BaseParser.parse_error(reply)
    return error


@pytest.mark.parametrize(("kind", "reply"), ALL)
def test_each_reply_has_its_meaning_alone_in_a_pipeline_and_in_a_script(kind: str, reply: str) -> None:
    error = parsed(reply)
    assert type(store_error(error)) is KINDS[kind], reply
    if not reply.startswith(("MOVED", "ASK", "ERR max")):  # never the reply to a command within a script
        in_script = parsed(f"{reply} script: f_1, on @user_script:2.")
        assert type(store_error(in_script)) is KINDS[kind], reply
    error.args = (f"Command # 1 (SET k MISCONF) of pipeline caused error: {error}",)
    assert type(store_error(error)) is KINDS[kind], reply


@pytest.mark.parametrize("reply", DAMAGES)
def test_a_reply_about_a_stored_value_concerns_that_value_alone(reply: str) -> None:
    assert type(store_error(parsed(reply))) is DAMAGED


def test_redis_6_wraps_the_code_of_a_script() -> None:
    full = "ERR Error running script (call to f_1): @user_script: 1: -OOM command not allowed when used memory > max"
    assert error_code(parsed(full)) == "OOM"
    assert type(store_error(parsed(full))) is FULL


def test_a_code_that_is_unknown_here_may_pass() -> None:
    assert type(store_error(parsed("TIRED come back later"))) is NOT_NOW
    assert type(store_error(redis.exceptions.TimeoutError("Timeout"))) is NOT_NOW


@pytest.mark.parametrize("error", [redis.exceptions.WatchError("w"), redis.exceptions.DataError("d"), ValueError("v")])
def test_errors_that_are_no_replies_pass_through(error: Exception) -> None:
    with pytest.raises(type(error)), reachable():
        raise error


def test_a_reply_for_which_there_is_no_memory_is_a_memory_error() -> None:
    """hiredis says so of a reply that it cannot allocate."""
    with pytest.raises(MemoryError), reachable():
        raise redis.exceptions.InvalidResponse("Out of memory")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Error 111 connecting to 127.0.0.1:1. Connection refused.", "connecting to 127.0.0.1:1: Connection refused"),
        ("Error -2 connecting to a.b:1. Name or service not known.", "connecting to a.b:1: Name or service not known"),
        ("Error 32 while writing to socket. Broken pipe.", "while writing to socket: Broken pipe"),
        (
            "Error while reading from 127.0.0.1:1 : (104, 'Connection reset by peer')",
            "while reading from 127.0.0.1:1: Connection reset by peer",
        ),
        ("Connection closed by server.", "Connection closed by server."),
    ],
)
def test_a_broken_connection_is_told_without_the_number_of_the_error(text: str, words: str) -> None:
    error = store_error(redis.exceptions.ConnectionError(text))
    assert str(error) == f"Redis does not answer ({words})"
