"""The Lua scripts that change a job: each runs in Redis as one step, whole or not at all."""

from __future__ import annotations

# KEYS: job, events. ARGV: time, worker, event. Returns the attempt, or 0 when the job is over.
START = """
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
local attempt
if redis.call('HEXISTS', KEYS[1], 'started_at') == 1 then
  attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
else
  attempt = tonumber(redis.call('HGET', KEYS[1], 'attempt'))
  redis.call('HSET', KEYS[1], 'started_at', ARGV[1])
end
redis.call('HSET', KEYS[1], 'status', 'running', 'worker', ARGV[2], 'step', 0, 'evaluations', 0,
           'writes', 0, 'images', '[]', 'numerics', ARGV[4])
local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
redis.call('XADD', KEYS[2], seq .. '-0', 'a', attempt, 'e', ARGV[3])
return attempt
"""

# KEYS: job, events, then one key for each blob. ARGV: the write as JSON, then the blobs.
# Returns 1 when it was (or had been) written, 0 when the job is over or has another attempt.
WRITE = """
local write = cjson.decode(ARGV[1])
local now = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'writes')
if now[1] ~= 'queued' and now[1] ~= 'running' then return 0 end
if write.attempt > 0 then
  if now[1] ~= 'running' or tonumber(now[2]) ~= write.attempt then return 0 end
  if tonumber(now[3]) >= write.number then return 1 end
  redis.call('HSET', KEYS[1], 'writes', write.number)
end
for name, value in pairs(write.fields) do redis.call('HSET', KEYS[1], name, value) end
if write.status ~= '' then redis.call('HSET', KEYS[1], 'status', write.status) end
for i = 2, #ARGV do redis.call('SET', KEYS[i + 1], ARGV[i]) end
for _, event in ipairs(write.events) do
  local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', write.cap, seq .. '-0', 'a', now[2], 'e', event)
end
if write.ttl > 0 then
  redis.call('EXPIRE', KEYS[1], write.ttl)
  redis.call('EXPIRE', KEYS[2], write.ttl)
  for i = 0, write.images - 1 do redis.call('EXPIRE', KEYS[1] .. ':image:' .. i, write.ttl) end
end
return 1
"""
