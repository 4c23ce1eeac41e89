"""The Lua scripts of the ledger of objects outside Redis. Redis runs each of them atomically."""

from __future__ import annotations

from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.script_prelude import PRELUDE

# Shared by the scripts of this module. The kind of an object is what its file's name begins with.
# count: adds to the bytes of a kind; a damaged value is zero.
# enter, remove: one object of a job; they return the bytes that it had before.
_SHARED = (
    PRELUDE
    + f"""
local totals, frames, due = '{keys.RESULT_BYTES}', '{keys.RESULT_FRAMES}', '{keys.RESULTS_DUE}'
local function bytes_of(key, name)
  local value = tonumber(redis.call('HGET', key, name) or 0) or 0
  if value ~= value or value < 0 or value > 9007199254740991 then return 0 end
  return value
end
local function objects_of(job)
  local key = '{keys.job("")}' .. job .. ':objects'
  own(key, 'hash')
  return key
end
local function kind_of(file) return string.match(file, '^%l+') or '' end
local function count(kind, more)
  redis.call('HSET', totals, kind, string.format('%.0f', math.max(0, bytes_of(totals, kind) + more)))
end
local function enter(job, file, size)
  local key, kind = objects_of(job), kind_of(file)
  count(kind, size - bytes_of(key, file))
  redis.call('HSET', key, file, string.format('%.0f', size))
  if kind == 'frames' then redis.call('ZADD', frames, 'NX', string.format('%.6f', clock()), job .. '/' .. file) end
end
local function remove(job, file)
  local key, kind = objects_of(job), kind_of(file)
  count(kind, -bytes_of(key, file))
  redis.call('HDEL', key, file)
  if kind == 'frames' then redis.call('ZREM', frames, job .. '/' .. file) end
end
own(totals, 'hash')
own(frames, 'zset')
own(due, 'zset')
"""
)

# Enters objects before they are written. ARGV: most bytes of frames and of resume points, seconds until a new job is
# looked at, then job, file and bytes of each object.
# Returns "job/file" of the resume points that there is no room for, which are not entered, and of the frames that are
# removed to make room.
ENTER = (
    _SHARED
    + """
pass_memory_limit()
local refused, removed = {}, {}
for i = 4, #ARGV, 3 do
  local job, file, size = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local needed = bytes_of(totals, 'resume') - bytes_of(objects_of(job), file) + size
  if kind_of(file) == 'resume' and needed > tonumber(ARGV[2]) then
    refused[#refused + 1] = job .. '/' .. file
  else
    enter(job, file, size)
    redis.call('ZADD', due, 'NX', string.format('%.6f', clock() + tonumber(ARGV[3])), job)
  end
end
while bytes_of(totals, 'frames') > tonumber(ARGV[1]) do
  local oldest = redis.call('ZPOPMIN', frames)[1]
  if not oldest then
    redis.call('HSET', totals, 'frames', 0)
  else
    local job, file = string.match(oldest, '^([^/]+)/(.+)$')
    if job then remove(job, file) end
    removed[#removed + 1] = oldest
  end
end
return {refused, removed}
"""
)

# Sets bytes aside for the pictures of a new job. ARGV: job, bytes, most bytes of pictures, seconds until it is looked
# at. Returns whether there is room, and the bytes that are taken.
RESERVE = (
    _SHARED
    + """
local taken = bytes_of(totals, 'image') + bytes_of(totals, 'array') + bytes_of(totals, 'reserved')
if taken + tonumber(ARGV[2]) > tonumber(ARGV[3]) then return {0, taken} end
enter(ARGV[1], 'reserved', tonumber(ARGV[2]))
redis.call('ZADD', due, 'NX', string.format('%.6f', clock() + tonumber(ARGV[4])), ARGV[1])
return {1, taken}
"""
)

# Removes objects of a job. ARGV: job, then the kinds to remove ('all': every kind) separated by spaces, and a file to
# keep. Returns the files that were removed.
REMOVE = (
    _SHARED
    + """
pass_memory_limit()
local removed = {}
for _, file in ipairs(redis.call('HKEYS', objects_of(ARGV[1]))) do
  local chosen = ARGV[2] == 'all' or string.find(' ' .. ARGV[2] .. ' ', ' ' .. kind_of(file) .. ' ', 1, true)
  if chosen and file ~= ARGV[3] then
    remove(ARGV[1], file)
    removed[#removed + 1] = file
  end
end
return removed
"""
)

# Takes jobs that are to be looked at; nobody else takes them for some seconds. ARGV: how many, those seconds.
# Returns id, status ('' = the job is not stored) and seconds until it expires (-1 = it does not) of each.
TAKE_DUE = (
    _SHARED
    + f"""
pass_memory_limit()
local taken = {{}}
for _, job in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', string.format('%.6f', clock()), 'LIMIT', 0, ARGV[1])) do
  redis.call('ZADD', due, string.format('%.6f', clock() + tonumber(ARGV[2])), job)
  local key = '{keys.job("")}' .. job
  local status = redis.call('TYPE', key).ok == 'hash' and redis.call('HGET', key, 'status') or ''
  taken[#taken + 1] = {{job, status, redis.call('TTL', key)}}
end
return taken
"""
)

# Sets when a job is to be looked at again. ARGV: job, seconds from now; -1: never.
LOOK_AGAIN = (
    _SHARED
    + """
pass_memory_limit()
if tonumber(ARGV[2]) < 0 then return redis.call('ZREM', due, ARGV[1]) end
return redis.call('ZADD', due, 'XX', string.format('%.6f', clock() + tonumber(ARGV[2])), ARGV[1])
"""
)
