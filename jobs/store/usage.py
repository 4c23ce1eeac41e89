"""What each caller with a key has used: evaluations in the current minute and day, and images that are kept.

Minutes and days are those of Redis' clock, in UTC. An accepted job counts with all of its evaluations, whether or not
it is canceled later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from redis.client import Pipeline

from denoised.jobs.record import JobRecord
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.script_prelude import PRELUDE
from denoised.jobs.store.store_connection import StoreConnection

MINUTE, DAY = 60, 86_400

# KEYS: usage of a caller, its kept images.
# used: of a window of so many seconds; kept: the images that have not expired, and the time at which the next ones do.
_SHARED = (
    PRELUDE
    + f"""
own(KEYS[1], 'hash') own(KEYS[2], 'zset')
local now = clock()
local function used(seconds)
  if tonumber(redis.call('HGET', KEYS[1], seconds .. ':window') or '') ~= math.floor(now / seconds) then return 0 end
  local count = tonumber(redis.call('HGET', KEYS[1], seconds .. ':used') or '') or 0
  return count == count and math.max(0, count) or 0
end
local function add(seconds, more)
  local count = math.max(0, used(seconds) + more)
  redis.call('HSET', KEYS[1], seconds .. ':window', math.floor(now / seconds),
             seconds .. ':used', string.format('%.0f', count))
end
local function left(seconds) return seconds - now % seconds end
local function kept()
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  local count, found = 0, redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
  for i = 1, #found, 2 do count = count + (tonumber(string.match(found[i], ':(%d+)$') or '') or 0) end
  local expires = tonumber(found[2] or 'inf') or math.huge
  return count, expires < math.huge and expires - now or -1
end
local function all()
  local count, expires = kept()
  return {{tostring(used({MINUTE})), tostring(left({MINUTE})), tostring(used({DAY})), tostring(left({DAY})),
          tostring(count), tostring(expires)}}
end
"""
)

# Counts a job, unless it would exceed a limit. ARGV: evaluations, images, limits of a minute, of a day, and of images;
# 0 is none. What has not been used at all takes a job of any size.
# Returns the number of the first limit that would be exceeded, 0 if none, and what was used before.
CHARGE = (
    _SHARED
    + f"""
local before, exceeded = all(), 0
for i, seconds in ipairs({{{MINUTE}, {DAY}}}) do
  local limit, count = tonumber(ARGV[i + 2]), used(seconds)
  if exceeded == 0 and limit > 0 and count > 0 and count + tonumber(ARGV[1]) > limit then exceeded = i end
end
local limit, count = tonumber(ARGV[5]), tonumber(before[5])
if exceeded == 0 and limit > 0 and count > 0 and count + tonumber(ARGV[2]) > limit then exceeded = 3 end
if exceeded == 0 then
  add({MINUTE}, tonumber(ARGV[1]))
  add({DAY}, tonumber(ARGV[1]))
  redis.call('EXPIRE', KEYS[1], {2 * DAY})
end
return {{exceeded, before}}
"""
)

# Takes back what a job was charged that was not accepted. ARGV: evaluations.
REFUND = _SHARED + f"add({MINUTE}, -tonumber(ARGV[1])) add({DAY}, -tonumber(ARGV[1]))"

# Reads what was used.
READ_USAGE = _SHARED + "return all()"


@dataclass(frozen=True)
class Used:
    """How much of a quota is used, and in how many seconds some of it is free again; None if that is unknown."""

    count: int
    resets_in: float | None


@dataclass(frozen=True)
class CallerUsage:
    """minute, day: evaluations; images: that are kept."""

    minute: Used
    day: Used
    images: Used

    @classmethod
    def of(cls, reply: Sequence[bytes]) -> CallerUsage:
        numbers = [float(text) for text in reply]
        pairs = [
            Used(int(count), seconds if seconds >= 0 else None)
            for count, seconds in zip(numbers[::2], numbers[1::2], strict=True)
        ]
        return cls(*pairs)


class UsageCounters:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection
        self._charge = connection.client.register_script(CHARGE)
        self._refund = connection.client.register_script(REFUND)
        self._read = connection.client.register_script(READ_USAGE)

    def charge(
        self, owner: str, evaluations: int, images: int, limits: Sequence[int | None]
    ) -> tuple[int, CallerUsage]:
        """Count a job, unless it would exceed a limit.

        limits: of evaluations in a minute and in a day, and of images; None: no limit.

        Returns the place of the limit that it would exceed, counted from 1, or 0; and what was used before.
        """
        args = [evaluations, images, *(limit or 0 for limit in limits)]
        with self._connection.reachable():
            exceeded, before = cast("tuple[int, list[bytes]]", self._charge(keys=_names(owner), args=args))
        return exceeded, CallerUsage.of(before)

    def refund(self, owner: str, evaluations: int) -> None:
        """Take back what a job was charged that was not accepted."""
        with self._connection.reachable():
            self._refund(keys=_names(owner), args=[evaluations])

    def read(self, owner: str) -> CallerUsage:
        """What a caller has used."""
        with self._connection.reachable():
            return CallerUsage.of(cast("list[bytes]", self._read(keys=_names(owner))))


def keep_images(job: JobRecord, pipeline: Pipeline, seconds: int) -> None:
    """Add to a transaction that the images of a job of a key are kept. seconds: after which they have expired."""
    if job.owner:
        pipeline.zadd(keys.kept_images(job.owner), {f"{job.id}:{job.request.n}": "inf"})
        pipeline.expire(keys.kept_images(job.owner), seconds)


def _names(owner: str) -> list[str]:
    return [keys.usage(owner), keys.kept_images(owner)]
