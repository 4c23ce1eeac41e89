"""RQ's side of a job as Lua scripts: taking it off its queue, renewing its lease, and putting it back.

RQ's own methods score leases by the clock of the process that calls them, need several round trips, and read and
decompress whatever the job's hash holds. Here Redis' clock decides, each change is one atomic script, nothing but the
job's id is read, and all of it works while Redis has no memory left. The keys are those of RQ 3.
"""

from __future__ import annotations

from denoised.jobs.store.scripts.script_prelude import PRELUDE
from denoised.jobs.store.waiting_lists import WAITING_LISTS

MAX_ID_BYTES = 200
MAX_DROPPED = 100  # foreign entries that one call drops

# Takes the next job of a model off its waiting lists (`jobs.store.waiting_lists`) and begins a lease on it.
# KEYS: queue, started registry, the worker's executions, turns, credits. ARGV: execution, seconds of the lease, worker,
# RQ's prefixes of jobs, of executions, and of the executions of a job, our prefix of jobs, seconds that the job must
# have waited, then the callers that are passed over.
# Returns the job's id ("" when there is none), whether more may wait, and the entries that were dropped, because they
# are not jobs. The id leaves its list last: if a command before is refused (NOPERM), the job is still there.
TAKE = (
    WAITING_LISTS
    + f"""
local queue, turns, credits, dropped = KEYS[1], KEYS[4], KEYS[5], {{}}
pass_memory_limit()
own(queue, 'list') own(KEYS[2], 'zset') own(KEYS[3], 'set') own(turns, 'zset') own(credits, 'hash')
local passed_over = {{}}
for i = 9, #ARGV do passed_over[ARGV[i]] = true end
-- Front ends of earlier versions add all jobs to the model's own queue.
if redis.call('EXISTS', queue) == 1 then join(turns, '') end

local function is_job(id)
  return #id <= {MAX_ID_BYTES} and string.match(id, '^[%w_-]+$') and redis.call('TYPE', ARGV[4] .. id).ok == 'hash'
end
local function first_of(owner)
  for _, priority in ipairs(PRIORITIES) do
    local list = list_of(queue, owner, priority)
    own(list, 'list')
    while #dropped < {MAX_DROPPED} do
      local id = redis.call('LINDEX', list, 0)
      if not id then break end
      if is_job(id) then return list, id end
      redis.call('DEL', ARGV[4] .. id)
      redis.call('LPOP', list)
      dropped[#dropped + 1] = string.sub(id, 1, {MAX_ID_BYTES})
    end
  end
end
local function leave(owner, is_new, last)
  if is_new then
    redis.call('ZADD', turns, last + 1, owner)
  else
    redis.call('ZREM', turns, owner)
    redis.call('HDEL', credits, owner)
  end
end
local function add_credit(owner, more)
  redis.call('HSET', credits, owner, string.format('%.17g', (credit_of(credits, owner) or 0) + more))
end
local function draw()
  local place, needed, quanta = 0, {{}}, {{}}
  while #dropped < {MAX_DROPPED} do
    local owner, position = unpack(redis.call('ZRANGE', turns, place, place, 'WITHSCORES'))
    if not owner then return end
    if passed_over[owner] then
      place = place + 1
    else
      local last = math.max(tonumber(redis.call('ZREVRANGE', turns, 0, 0, 'WITHSCORES')[2]), 0)
      local list, id = first_of(owner)
      if not id then
        if #dropped >= {MAX_DROPPED} then return end
        leave(owner, tonumber(position) < 0, last)
        needed[owner] = nil
      else
        local job = ARGV[4] .. id
        local cost, quantum = cost_of(job), quantum_of(job)
        if needed[owner] then
          -- A round without a job: the quanta of all the rounds until the first caller can pay.
          local rounds = math.huge
          for _, count in pairs(needed) do rounds = math.min(rounds, count) end
          if rounds > 0 then
            for each in pairs(needed) do add_credit(each, rounds * quanta[each]) end
          end
          needed = {{}}
        end
        local credit = credit_of(credits, owner) or quantum
        if cost <= credit then return owner, list, id, credit - cost end
        credit = credit + quantum
        redis.call('HSET', credits, owner, string.format('%.17g', credit))
        redis.call('ZADD', turns, last + 1, owner)
        needed[owner], quanta[owner] = math.max(0, math.ceil((cost - credit) / quantum)), quantum
      end
    end
  end
end

local owner, list, id, credit = draw()
if not id then return {{'', 0, dropped}} end
local now = clock()
local created = redis.pcall('HGET', ARGV[7] .. id, 'created_at')
created = type(created) == 'string' and tonumber(created) or 0
if now - created < tonumber(ARGV[8]) then return {{'', 1, dropped}} end
local job, member, ttl = ARGV[4] .. id, id .. ':' .. ARGV[1], tonumber(ARGV[2])
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
redis.call('HSET', credits, owner, string.format('%.17g', credit))
redis.call('LPOP', list)
local more = redis.call('ZCARD', turns) > 1
for _, priority in ipairs(PRIORITIES) do
  more = more or redis.call('EXISTS', list_of(queue, owner, priority)) == 1
end
return {{id, more and 1 or 0, dropped}}
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

# Ends a lease and puts its job back at the front of its list; its caller is next.
# KEYS: started registry, execution, executions of the job, the worker's executions, queue, RQ's job, turns, credits.
# ARGV: execution id, the lease's member of the registry, job id, channel.
REQUEUE = (
    WAITING_LISTS
    + """
pass_memory_limit()
own(KEYS[1], 'zset') own(KEYS[3], 'zset') own(KEYS[4], 'set') own(KEYS[6], 'hash')
redis.call('ZREM', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('SREM', KEYS[4], ARGV[2])
redis.call('HSET', KEYS[6], 'status', 'queued')
put_back(KEYS[5], KEYS[7], KEYS[8], KEYS[6], ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[3])
"""
)
