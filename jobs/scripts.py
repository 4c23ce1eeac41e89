"""The Lua scripts that change a job: each runs in Redis as one step, whole or not at all."""

from __future__ import annotations

from denoised.jobs import redis_keys as keys

# A job is over: who waits for that is told; it, its events and its pictures expire, what it could have been resumed
# from goes; it is counted.
_OVER = f"""
local function over(job, events, images, ttl)
  redis.call('XADD', '{keys.ENDS}', 'MAXLEN', '~', 10000, '*', 'job', string.sub(job, #'{keys.job("")}' + 1))
  redis.call('EXPIRE', job, ttl)
  redis.call('EXPIRE', events, ttl)
  for i = 0, images - 1 do redis.call('EXPIRE', job .. ':image:' .. i, ttl) end
  redis.call('DEL', job .. ':resume')
end
local function count(job, status)
  local read, request = pcall(cjson.decode, redis.call('HGET', job, 'request') or '')
  local model = read and type(request) == 'table' and request.model or '?'
  redis.call('HINCRBY', '{keys.JOB_TOTALS}', status .. ':' .. tostring(model), 1)
end
local function tell(job, events, attempt, event)
  local seq = redis.call('HINCRBY', job, 'seq', 1)
  redis.call('XADD', events, seq .. '-0', 'a', attempt, 'e', event)
end
"""

# KEYS: job, events. ARGV: time, worker, event, numerics, seconds that a failed job is kept, execution.
# Returns the attempt, or 0 when the job is over: ended before, or lost its worker too often by now. Asked again for the
# same execution (the reply was lost) it changes nothing. What earlier attempts made is kept while the numerics are the
# same. A job on its last chance has `entered` 0 until ENTER: it waits for its neighbours to leave, and a worker that is
# lost meanwhile was not lost by its doing.
START = (
    _OVER
    + """
local job, events = KEYS[1], KEYS[2]
local status = redis.call('HGET', job, 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
local function number(name) return tonumber(redis.call('HGET', job, name) or 0) end
local attempt = number('attempt')
if status == 'running' then
  if redis.call('HGET', job, 'execution') == ARGV[6] then return attempt end
  if redis.call('HGET', job, 'entered') ~= '0' then
    redis.call('HINCRBY', job, 'losses', 1)
    redis.call('HSET', job, 'lost_at', math.max(number('lost_at'), number('evaluations')))
  end
  local losses, most = number('losses'), number('max_attempts')
  if most > 0 and losses >= most then
    local message = 'the worker was lost ' .. losses .. ' time(s) in a row while it did this job'
    redis.call('HSET', job, 'status', 'failed', 'finished_at', ARGV[1],
               'error', cjson.encode({code = 'worker_lost', message = message}))
    tell(job, events, attempt, '{"type": "failed"}')
    over(job, events, cjson.decode(redis.call('HGET', job, 'request')).n, ARGV[5])
    count(job, 'failed')
    return 0
  end
end
if redis.call('HEXISTS', job, 'started_at') == 1 then
  attempt = redis.call('HINCRBY', job, 'attempt', 1)
else
  redis.call('HSET', job, 'started_at', ARGV[1])
end
if redis.call('HGET', job, 'numerics') ~= ARGV[4] then
  redis.call('HSET', job, 'images', '[]', 'saved_step', 0, 'saved_evaluations', 0)
  redis.call('DEL', job .. ':resume')
end
redis.call('HSET', job, 'status', 'running', 'worker', ARGV[2], 'step', number('saved_step'),
           'evaluations', number('saved_evaluations'), 'writes', 0, 'numerics', ARGV[4],
           'execution', ARGV[6],
           'entered', (number('losses') > 0 and number('losses') >= number('max_attempts') - 1) and 0 or 1)
tell(job, events, attempt, ARGV[3])
return attempt
"""
)

# KEYS: job. ARGV: attempt. A job that waited to be alone begins. Returns 0 when it is over or has another attempt.
ENTER = """
local now = redis.call('HMGET', KEYS[1], 'status', 'attempt')
if now[1] ~= 'running' or tonumber(now[2]) ~= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'entered', 1)
return 1
"""

# KEYS: job, events, then one key for each blob. ARGV: the write as JSON, then the blobs: images, then a resume point.
# Returns 1 when it was (or had been) written, 2 when the job is watched besides, 0 when it is over or has another
# attempt.
WRITE = (
    _OVER
    + """
local write = cjson.decode(ARGV[1])
local now = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'writes', 'watched')
if now[1] ~= 'queued' and now[1] ~= 'running' then return 0 end
local written = now[4] == '1' and 2 or 1
if write.attempt > 0 then
  if now[1] ~= 'running' or tonumber(now[2]) ~= write.attempt then return 0 end
  if tonumber(now[3]) >= write.number then return written end
  write.fields.writes = write.number
end
if write.status ~= '' then write.fields.status = write.status end
local fields = {}
for name, value in pairs(write.fields) do
  fields[#fields + 1], fields[#fields + 2] = name, value
end
if #fields > 0 then redis.call('HSET', KEYS[1], unpack(fields)) end
local images = #ARGV
if write.resume_ttl > 0 then
  redis.call('SET', KEYS[#KEYS], ARGV[#ARGV], 'EX', write.resume_ttl)
  images = images - 1
end
for i = 2, images do redis.call('SET', KEYS[i + 1], ARGV[i]) end
local more = #write.events
if more > 0 then
  local seq = redis.call('HINCRBY', KEYS[1], 'seq', more) - more
  for i, event in ipairs(write.events) do
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', write.cap, (seq + i) .. '-0', 'a', now[2], 'e', event)
  end
end
if write.ttl > 0 then
  over(KEYS[1], KEYS[2], write.images, write.ttl)
  count(KEYS[1], write.status)
end
return written
"""
)

# KEYS: job. Notes that somebody follows its events. Returns the seq of the newest, 0 when there is no such job.
WATCH = """
local seq = redis.call('HGET', KEYS[1], 'seq')
if not seq then return 0 end
redis.call('HSET', KEYS[1], 'watched', 1)
return tonumber(seq)
"""

# Puts the jobs of dead workers back to the front of a queue, the oldest first.
# KEYS: RQ's queue, its intermediate queue, its started registry; our hash of when ids were first seen in the
# intermediate queue. ARGV: time, seconds an id may be there, prefix of RQ's job hashes, prefix of our jobs, channel.
# Returns how many. An id leaves the intermediate queue when its worker has registered its lease, which takes an
# instant; one without a lease that stays belonged to a worker that died in that instant.
COLLECT = """
local queue, between, started, seen = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, patience = tonumber(ARGV[1]), tonumber(ARGV[2])
local held, expired = {}, {}
local entries = redis.call('ZRANGE', started, 0, -1, 'WITHSCORES')
for i = 1, #entries, 2 do
  local id = string.match(entries[i], '^(.*):')
  if tonumber(entries[i + 1]) > now then held[id] = true else expired[entries[i]] = id end
end
local lost = {}
for entry, id in pairs(expired) do
  redis.call('ZREM', started, entry)
  if not held[id] then lost[id] = true end
end
local there = {}
for _, id in ipairs(redis.call('LRANGE', between, 0, -1)) do
  there[id] = true
  if not held[id] then
    local since = redis.call('HGET', seen, id)
    if not since then redis.call('HSET', seen, id, now)
    elseif now - tonumber(since) >= patience then lost[id] = true end
  end
end
for _, id in ipairs(redis.call('HKEYS', seen)) do
  if lost[id] or held[id] or not there[id] then redis.call('HDEL', seen, id) end
end
local jobs = {}
for id in pairs(lost) do
  redis.call('LREM', between, 0, id)
  if redis.call('EXISTS', ARGV[3] .. id) == 1 and not redis.call('LPOS', queue, id) then
    jobs[#jobs + 1] = {id = id, created = tonumber(redis.call('HGET', ARGV[4] .. id, 'created_at') or 0)}
  end
end
table.sort(jobs, function(a, b) return a.created > b.created end)
for _, job in ipairs(jobs) do
  redis.call('HSET', ARGV[3] .. job.id, 'status', 'queued')
  redis.call('LPUSH', queue, job.id)
  redis.call('PUBLISH', ARGV[5], job.id)
end
return #jobs
"""

# Adds what a worker has done to what all have. Told again, or late, it adds only what is new.
# KEYS: the totals, what was added of this worker. ARGV: seconds that is remembered, then names and values.
COUNT = """
for i = 2, #ARGV, 2 do
  local more = tonumber(ARGV[i + 1]) - tonumber(redis.call('HGET', KEYS[2], ARGV[i]) or 0)
  if more > 0 then
    redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], more)
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
"""
