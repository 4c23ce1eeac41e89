"""What an error of Redis means: not now, out of memory, never, or one damaged record.

The one place that decides it, for the front end and for the workers:

- "Not now" passes by itself: no connection, a timeout, and replies such as LOADING, MISCONF, BUSY or READONLY. The
  front end answers 503 with Retry-After, a worker waits and continues. A code that is unknown here counts as "not now".
- OOM is "not now", too, but reading still works, and the answer to a client says that nothing new fits.
- "Never" needs an operator: rights, the password, cluster mode. Programs refuse to start with it. If it appears later,
  they treat it as "not now", because an operator may correct it while they run.
- A damaged value concerns its own record alone: a key of another type, a number that is none.

Codes: https://valkey.io/topics/protocol/, and `shared` in the source of Redis 8 and Valkey 9.
"""

from __future__ import annotations

import re

import redis

from denoised.jobs.errors import RecordError, StoreError, StoreFull, StoreRefused, StoreUnavailable

FULL_CODES = frozenset({"OOM"})
NEVER_CODES = frozenset({"NOPERM", "NOAUTH", "WRONGPASS", "DENIED", "NOPROTO", "MOVED", "ASK", "CROSSSLOT"})
DAMAGED_CODES = frozenset({"WRONGTYPE"})
# Replies of the generic code ERR, and of errors in a script, by their text.
_PASSING_TEXT = re.compile(r"script killed by user", re.I)
_NEVER_TEXT = re.compile(
    r"unknown (\w+ )?(sub)?command|the user executing the script|ACL failure in script|AUTH.* without any password"
    r"|cluster support|DB index is out of range|SELECT is not allowed|non local key",
    re.I,
)
_DAMAGED_TEXT = re.compile(
    r"is not an integer|is not a (valid )?float|would overflow|would produce NaN|exceeds maximum allowed size"
    r"|equal or smaller than the target|Invalid stream ID|syntax error|wrong number of arguments"
    r"|user_script|Error running script|Lua redis lib|resulting score is not a number|min or max is not",
    re.I,
)
_NUMBERED = re.compile(r"^Error -?\d+ (connecting to .*?|while \w+ .*?)\. (.*?)\.?$", re.S)
_READING = re.compile(r"^Error (while reading from .*?) ?: \(-?\d+, '(.*)'\)$", re.S)
_PIPELINE_PREFIX = " of pipeline caused error: "  # redis-py puts the command before it
_ABORTED_CODE = re.compile(r"Transaction discarded because of: ([A-Z]+) ")
_SCRIPT_CODE = re.compile(r"(?:@user_script[^-]*|Error running script[^-]*)-([A-Z]+) ")  # Redis 6
_CODE = re.compile(r"[A-Z][A-Z_]+(?= |$)")


def error_code(error: redis.exceptions.RedisError) -> str:
    """The code of an error reply, such as "MISCONF"; "ERR" if it has none."""
    text = str(error).rpartition(_PIPELINE_PREFIX)[2]
    if inner := _SCRIPT_CODE.search(text) or _ABORTED_CODE.search(text):
        return inner[1]
    if error.status_code:
        return error.status_code
    found = _CODE.match(text)
    return found[0] if found else "ERR"


def store_error(error: redis.exceptions.RedisError) -> StoreError:
    """The error of ours for an error of redis-py, with the reply's text."""
    if isinstance(error, redis.exceptions.AuthenticationError | redis.exceptions.NoPermissionError):
        return StoreRefused(f"Redis refuses access ({error})")
    if isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError):
        return StoreUnavailable(f"Redis does not answer ({connection_problem(error)})")
    return _reply_error(error_code(error), str(error))


def connection_problem(error: redis.exceptions.RedisError) -> str:
    """What redis-py says about a connection, without the number of the system's error: "connecting to …: refused"."""
    text = str(error)
    found = _NUMBERED.match(text) or _READING.match(text)
    return f"{found[1]}: {found[2]}" if found else text


def _reply_error(code: str, text: str) -> StoreError:
    reply = text if text.startswith(code) or code == "ERR" else f"{code} {text}"
    if code in FULL_CODES:
        return StoreFull(f"Redis has no memory left ({reply})")
    if code in NEVER_CODES or (code == "ERR" and _NEVER_TEXT.search(text)):
        return StoreRefused(f"Redis refuses a command for good ({reply})")
    if code in DAMAGED_CODES or (code == "ERR" and not _PASSING_TEXT.search(text) and _DAMAGED_TEXT.search(text)):
        return RecordError(f"Redis cannot apply a command to a stored value ({reply})")
    return StoreUnavailable(f"Redis refuses a command for now ({reply})")
