"""The Lua scripts that concern workers: lost jobs, counters and reports. Redis runs each of them atomically."""

from __future__ import annotations

from denoised.jobs.store.scripts.script_prelude import PRELUDE
from denoised.jobs.store.waiting_lists import WAITING_LISTS

# Requeues the jobs of lost workers at the front of their lists, the oldest first.
# KEYS: RQ's queue, its intermediate queue, its started registry; our hash of when ids were first seen in the
# intermediate queue; turns and credits of the waiting lists. ARGV: seconds an id may stay there, prefix of RQ's job
# hashes, prefix of our jobs, channel, the latest time at which leases may be taken for expired.
# Returns how many. An id leaves the intermediate queue as soon as its worker registers the lease; one without a lease
# that stays there belonged to a worker that died in that instant.
REQUEUE_LOST = (
    WAITING_LISTS
    + """
local queue, intermediate, started, seen = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
own(queue, 'list') own(intermediate, 'list') own(started, 'zset') own(seen, 'hash')
local now, grace = clock(), tonumber(ARGV[1])
if now > tonumber(ARGV[5]) then return 0 end
local held, expired = {}, {}
local entries = redis.call('ZRANGE', started, 0, -1, 'WITHSCORES')
for i = 1, #entries, 2 do
  local id = string.match(entries[i], '^(.*):') or ''
  if tonumber(entries[i + 1]) > now then held[id] = true else expired[entries[i]] = id end
end
pass_memory_limit()
local lost = {}
for entry, id in pairs(expired) do
  redis.call('ZREM', started, entry)
  if not held[id] then lost[id] = true end
end
local present = {}
for _, id in ipairs(redis.call('LRANGE', intermediate, 0, -1)) do
  present[id] = true
  if not held[id] then
    local since = redis.call('HGET', seen, id)
    if not since then redis.call('HSET', seen, id, now)
    elseif now - (tonumber(since) or 0) >= grace then lost[id] = true end
  end
end
for _, id in ipairs(redis.call('HKEYS', seen)) do
  if lost[id] or held[id] or not present[id] then redis.call('HDEL', seen, id) end
end
local jobs = {}
for id in pairs(lost) do
  redis.call('LREM', intermediate, 0, id)
  local _, list = place_of(queue, ARGV[2] .. id)
  own(list, 'list')
  if redis.call('EXISTS', ARGV[2] .. id) == 1 and not redis.call('LPOS', list, id) then
    local created = redis.pcall('HGET', ARGV[3] .. id, 'created_at')
    created = type(created) == 'string' and tonumber(created) or 0
    jobs[#jobs + 1] = {id = id, created = created == created and created or 0}
  end
end
table.sort(jobs, function(a, b) return a.created > b.created end)
for _, job in ipairs(jobs) do
  redis.call('HSET', ARGV[2] .. job.id, 'status', 'queued')
  put_back(queue, KEYS[5], KEYS[6], ARGV[2] .. job.id, job.id)
  redis.call('PUBLISH', ARGV[4], job.id)
end
return #jobs
"""
)

# Adds a worker's counters to the totals. Repeated or overtaken calls add only what is new.
# KEYS: the totals, what was added for this worker so far. ARGV: seconds to remember that, then names and values.
ADD_COUNTERS = (
    PRELUDE
    + """
pass_memory_limit()
own(KEYS[1], 'hash') own(KEYS[2], 'hash')
for i = 2, #ARGV, 2 do
  local more = tonumber(ARGV[i + 1]) - (tonumber(redis.call('HGET', KEYS[2], ARGV[i]) or 0) or 0)
  if more > 0 then
    local total = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or 0)
    if not total then redis.call('HDEL', KEYS[1], ARGV[i]) end
    redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], more)
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
"""
)

# Publishes a worker's report, at `maxmemory` too. KEYS: the worker's, names of workers, names of models.
# ARGV: name, report, milliseconds that it is valid, then the models.
REPORT = (
    PRELUDE
    + """
pass_memory_limit()
own(KEYS[2], 'set') own(KEYS[3], 'set')
redis.call('SADD', KEYS[2], ARGV[1])
for i = 4, #ARGV do redis.call('SADD', KEYS[3], ARGV[i]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
"""
)
