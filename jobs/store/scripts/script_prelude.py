"""What all Lua scripts share: Redis' clock, the memory limit, and keys of another type."""

from __future__ import annotations

from denoised.jobs.store import redis_keys as keys

# Precedes every script that changes something.
# clock: Redis' own, in seconds; no process's clock decides anything that another process sees.
# pass_memory_limit: at `maxmemory` Redis refuses a script's first write if it may need memory. What was accepted must
#   go on there (admission has reserved its memory), so these scripts begin with a write that frees memory.
# own: removes a shared key of another type. Nothing of ours is in it, and all jobs would stand still because of it.
PRELUDE = f"""
local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local function pass_memory_limit() redis.call('DEL', '{keys.PROBE}') end
local function own(key, kind)
  local found = redis.call('TYPE', key).ok
  if found == kind or found == 'none' then return false end
  redis.log(redis.LOG_WARNING, key .. ' is removed: it is a ' .. found .. ' (denoised expects: ' .. kind .. ')')
  redis.call('DEL', key)
  return true
end
"""

# Removes those of the keys that have another type than they should. KEYS: any. ARGV: the type of each.
# Returns how many there were.
OWN = (
    PRELUDE
    + """
local removed = 0
for i, key in ipairs(KEYS) do
  if own(key, ARGV[i]) then removed = removed + 1 end
end
return removed
"""
)
