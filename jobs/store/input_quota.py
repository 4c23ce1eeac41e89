"""How many bytes of pictures each caller has stored for jobs to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.script_prelude import PRELUDE
from denoised.jobs.store.store_connection import StoreConnection

MIN_BYTES = 4096  # that a picture counts at least, so that their number is limited, too
COUNT_SECONDS = 10  # between two counts of the pictures of a caller that is at its limit
LISTED_SECONDS = 86_400  # that a job may wait and run while its pictures are counted

# Counts pictures that a job is to start from, unless they exceed a limit together with those that are stored.
# KEYS: the caller's list. ARGV: limit, seconds that the list is kept after its last use, seconds between two counts of
# what has expired, then key and bytes of each picture. Returns whether they fit, and the bytes that were stored.
# A picture that has expired is still in the list until the limit is reached.
ADD = (
    PRELUDE
    + """
local list, limit = KEYS[1], tonumber(ARGV[1])
own(list, 'hash')
local function number(name) return tonumber(redis.call('HGET', list, name) or 0) or 0 end
local stored, needed = number('stored'), 0
for i = 4, #ARGV, 2 do
  if redis.call('HEXISTS', list, ARGV[i]) == 0 then needed = needed + tonumber(ARGV[i + 1]) end
end
if needed == 0 then return {1, stored} end
if stored + needed > limit and clock() - number('counted_at') >= tonumber(ARGV[3]) then
  local entries = redis.call('HGETALL', list)
  stored = 0
  for i = 1, #entries, 2 do
    local key = entries[i]
    if key ~= 'stored' and key ~= 'counted_at' then
      if redis.call('EXISTS', key) == 1 then
        stored = stored + (tonumber(entries[i + 1]) or 0)
      else
        redis.call('HDEL', list, key)
      end
    end
  end
  redis.call('HSET', list, 'stored', string.format('%.0f', stored), 'counted_at', string.format('%.0f', clock()))
end
if stored + needed > limit then return {0, stored} end
for i = 4, #ARGV, 2 do redis.call('HSET', list, ARGV[i], ARGV[i + 1]) end
redis.call('HSET', list, 'stored', string.format('%.0f', stored + needed))
redis.call('EXPIRE', list, ARGV[2])
return {1, stored}
"""
)


@dataclass(frozen=True)
class StoredInputs:
    """The pictures of a caller before more were counted.

    fit: whether the new ones are within the limit; if not, they are not counted.
    bytes: of those that are stored.
    """

    fit: bool
    bytes: int


class InputQuota:
    """Raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection, result_ttl: int) -> None:
        self._connection = connection
        self._kept = result_ttl + LISTED_SECONDS
        self._add = connection.client.register_script(ADD)

    def add(self, owner: str, sizes: Mapping[str, int], limit: int) -> StoredInputs:
        """Count pictures that a new job is to start from. sizes: bytes by key; one that is stored counts once."""
        counted = [part for key, size in sizes.items() for part in (key, str(max(size, MIN_BYTES)))]
        args = [str(limit), str(self._kept), str(COUNT_SECONDS), *counted]
        with self._connection.reachable():
            fit, stored = self._add(keys=[keys.stored_inputs(owner)], args=args)
        return StoredInputs(bool(fit), int(stored))
