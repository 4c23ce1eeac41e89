"""RQ's side of a job as Lua scripts: taking it off its queue, renewing its lease, and putting it back.

RQ's own methods score leases by the clock of the process that calls them, need several round trips, and read and
decompress whatever the job's hash holds. Here Redis' clock decides, each change is one atomic script, nothing but the
job's id is read, and all of it works while Redis has no memory left. The keys are those of RQ 3.
"""

from __future__ import annotations

from denoised.jobs.store.script_prelude import PRELUDE

MAX_ID_BYTES = 200
MAX_DROPPED = 100  # foreign entries that one call drops

# Takes the next job off a queue and begins a lease on it.
# KEYS: queue, started registry, the worker's executions. ARGV: execution, seconds of the lease, worker, and RQ's
# prefixes of jobs, of executions, and of the executions of a job.
# Returns the job's id ("" when the queue is empty), how many jobs are left, and the entries that were dropped, because
# they are not jobs. The id leaves the queue last: if a command before is refused (NOPERM), the job is still there.
TAKE = (
    PRELUDE
    + f"""
pass_memory_limit()
own(KEYS[1], 'list') own(KEYS[2], 'zset') own(KEYS[3], 'set')
local ttl, dropped = tonumber(ARGV[2]), {{}}
for _ = 1, {MAX_DROPPED} do
  local id = redis.call('LINDEX', KEYS[1], 0)
  if not id then break end
  local job = ARGV[4] .. id
  if #id <= {MAX_ID_BYTES} and string.match(id, '^[%w_-]+$') and redis.call('TYPE', job).ok == 'hash' then
    local now, member = clock(), id .. ':' .. ARGV[1]
    local execution, executions = ARGV[5] .. member, ARGV[6] .. id
    redis.call('DEL', execution)
    redis.call('HSET', execution, 'id', ARGV[1], 'job_id', id, 'created_at', now, 'last_heartbeat', now,
               'worker_name', ARGV[3])
    redis.call('EXPIRE', execution, ttl)
    own(executions, 'zset')
    redis.call('ZADD', executions, now + ttl + 60, ARGV[1])
    redis.call('EXPIRE', executions, ttl + 60)
    redis.call('ZADD', KEYS[2], now + ttl, member)
    redis.call('SADD', KEYS[3], member)
    redis.call('EXPIRE', KEYS[3], ttl + 60)
    redis.call('HSET', job, 'status', 'started', 'worker_name', ARGV[3])
    redis.call('PERSIST', job)
    redis.call('LPOP', KEYS[1])
    return {{id, redis.call('LLEN', KEYS[1]), dropped}}
  end
  redis.call('DEL', job)
  redis.call('LPOP', KEYS[1])
  dropped[#dropped + 1] = string.sub(id, 1, {MAX_ID_BYTES})
end
return {{'', redis.call('LLEN', KEYS[1]), dropped}}
"""
)

# Renews a lease, unless it is lost. KEYS: started registry, execution, executions of the job.
# ARGV: execution id, seconds, the lease's member of the registry. The execution expires with the lease; while it is
# there, the lease is held, even if somebody has removed it from the registry.
RENEW = (
    PRELUDE
    + """
pass_memory_limit()
own(KEYS[1], 'zset') own(KEYS[3], 'zset')
local now, ttl = clock(), tonumber(ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZADD', KEYS[1], 'XX', now + ttl, ARGV[3])
else
  own(KEYS[2], 'hash')
  redis.call('ZADD', KEYS[1], now + ttl, ARGV[3])
  redis.call('HSET', KEYS[2], 'last_heartbeat', now)
  redis.call('EXPIRE', KEYS[2], ttl)
end
redis.call('ZADD', KEYS[3], 'XX', now + ttl + 60, ARGV[1])
redis.call('EXPIRE', KEYS[3], ttl + 60)
"""
)

# Ends a lease and puts its job back at the front of the queue.
# KEYS: started registry, execution, executions of the job, the worker's executions, queue, RQ's job.
# ARGV: execution id, the lease's member of the registry, job id, channel.
REQUEUE = (
    PRELUDE
    + """
pass_memory_limit()
own(KEYS[1], 'zset') own(KEYS[3], 'zset') own(KEYS[4], 'set') own(KEYS[5], 'list') own(KEYS[6], 'hash')
redis.call('ZREM', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('SREM', KEYS[4], ARGV[2])
redis.call('HSET', KEYS[6], 'status', 'queued')
redis.call('LPUSH', KEYS[5], ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[3])
"""
)
