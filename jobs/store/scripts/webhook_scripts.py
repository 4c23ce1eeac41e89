"""The Lua scripts of webhooks: queue one, claim those that are due, settle an attempt."""

from __future__ import annotations

from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.script_prelude import PRELUDE

MAX_ORIGIN = 300  # characters of scheme, host and port

# Part of every script that ends a job. The deliveries of a job are fields of its record, so they expire with it; the
# queue of an origin has its jobs by the time at which their next attempt is due.
QUEUE_WEBHOOK = f"""
local function queue_webhook(job, url, ttl)
  local origin = type(url) == 'string' and string.match(url, '^https?://[^/?#]+')
  if not origin or #origin > {MAX_ORIGIN} then return end
  local queue, now = '{keys.WEBHOOKS}' .. origin, string.format('%.6f', clock())
  own(queue, 'zset')
  redis.call('ZADD', queue, now, string.sub(job, #'{keys.job("")}' + 1))
  redis.call('EXPIRE', queue, ttl)
  redis.call('HSET', job, 'webhook_status', 'pending', 'webhook_attempts', 0, 'webhook_next', now)
end
"""

# Takes due webhooks for an attempt, and makes each due again when the lease ends, in case the attempt never settles.
# KEYS: queues. ARGV: lease in seconds, then the most webhooks of each queue.
# Returns how many expired jobs were dropped, then {number of the queue, job id, attempt} for each webhook taken.
CLAIM_WEBHOOKS = (
    PRELUDE
    + f"""
local now, reply = clock(), {{0}}
for i, queue in ipairs(KEYS) do
  own(queue, 'zset')
  local most = tonumber(ARGV[i + 1])
  local due = most > 0 and redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, most) or {{}}
  if #due > 0 then pass_memory_limit() end
  for _, id in ipairs(due) do
    local job = '{keys.job("")}' .. id
    local attempts = redis.call('TYPE', job).ok == 'hash' and redis.call('HGET', job, 'webhook_attempts')
    if attempts then
      local attempt, again = (tonumber(attempts) or 0) + 1, string.format('%.6f', now + tonumber(ARGV[1]))
      redis.call('HSET', job, 'webhook_attempts', string.format('%.0f', attempt), 'webhook_next', again,
                 'webhook_at', string.format('%.6f', now))
      redis.call('ZADD', queue, again, id)
      reply[#reply + 1] = {{i, id, attempt}}
    else
      redis.call('ZREM', queue, id)
      reply[1] = reply[1] + 1
    end
  end
end
return reply
"""
)

# Records how an attempt went. KEYS: queue, job. ARGV: job id, attempt, status, HTTP status or 0, error, seconds until
# the next attempt or -1. Returns 0, and changes nothing, if the job has expired or a later attempt has been claimed.
SETTLE_WEBHOOK = (
    PRELUDE
    + """
if redis.call('TYPE', KEYS[2]).ok ~= 'hash' then return 0 end
if tonumber(redis.call('HGET', KEYS[2], 'webhook_attempts') or '') ~= tonumber(ARGV[2]) then return 0 end
pass_memory_limit()
redis.call('HSET', KEYS[2], 'webhook_status', ARGV[3], 'webhook_response', ARGV[4], 'webhook_error', ARGV[5])
if tonumber(ARGV[6]) < 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], 'webhook_next')
else
  local due = string.format('%.6f', clock() + tonumber(ARGV[6]))
  redis.call('ZADD', KEYS[1], due, ARGV[1])
  redis.call('HSET', KEYS[2], 'webhook_next', due)
end
return 1
"""
)
