"""The Lua scripts that change a job. Redis runs each of them atomically."""

from __future__ import annotations

from denoised.jobs.store.scripts.job_functions import EVENT_CAP, JOB_FUNCTIONS

MAX_RESUME_BYTES = 256 << 20

# Reads a job's record. KEYS: job. Returns its fields and values, false when it is larger than any record is.
READ = JOB_FUNCTIONS + "return record_of(KEYS[1])"

# Starts an attempt.
# KEYS: job, events, resume point.
# ARGV: worker, "started" event, numerics, seconds that a failed job is kept, execution, largest resume point in bytes.
# Returns the attempt's number, the record (see READ), the resume point, and the seconds since
# the job was accepted; the number is 0 when the job is over: ended before, or failed now for its losses. Repeated for
# the same execution (the reply was lost) it changes nothing. Pictures and resume point of earlier attempts are kept
# while the numerics are the same.
#
# A job that is found running has lost its worker, which counts as one loss; UPDATE resets the count when the job gets
# further than it was at any loss. `furthest`: the most evaluations that it was known to have at a loss. `tracked`: each
# turn of the attempt is saved before the next, so that this number is exact if the worker is lost now. `exact`: it is;
# without it, an attempt may only regain what the lost one had not reported. One loss before `max_attempts` the job is
# quarantined: it stays "queued" until START_ALONE, so that losing the worker while it waits for the batch to empty is
# not counted.
START = (
    JOB_FUNCTIONS
    + """
local job, events, resume = KEYS[1], KEYS[2], KEYS[3]
local now = clock()
local function drop_unusable_point()
  local kind = redis.call('TYPE', resume).ok
  if kind ~= 'none' and (kind ~= 'string' or redis.call('STRLEN', resume) > tonumber(ARGV[6])) then
    redis.call('HSET', job, 'saved_step', 0, 'saved_evaluations', 0)
    redis.call('DEL', resume)
  end
end
local function reply(attempt)
  drop_unusable_point()
  local point = redis.call('GET', resume)
  local waited = now - (tonumber(redis.call('HGET', job, 'created_at') or now) or now)
  return {attempt, record_of(job), point, string.format('%.6f', math.max(0, waited))}
end
local status = redis.call('HGET', job, 'status')
if status ~= 'queued' and status ~= 'running' then return {0} end
check_rights(job, events)
pass_memory_limit()
local attempt = number(job, 'attempt')
if redis.call('HGET', job, 'execution') == ARGV[5] then return reply(attempt) end
if status == 'running' then
  add(job, 'losses', 1)
  local furthest = math.max(number(job, 'furthest'), number(job, 'evaluations'))
  redis.call('HSET', job, 'furthest', string.format('%.0f', furthest), 'exact', number(job, 'tracked'))
end
local losses, most = number(job, 'losses'), number(job, 'max_attempts')
if most > 0 and losses >= most then
  local message = losses .. ' worker(s) in a row were lost while they ran this job, without progress in between'
  fail(job, events, ARGV[4], 'worker_lost', message)
  return {0}
end
if redis.call('HEXISTS', job, 'started_at') == 1 then
  attempt = add(job, 'attempt', 1)
else
  redis.call('HSET', job, 'started_at', string.format('%.6f', now))
end
if redis.call('HGET', job, 'numerics') ~= ARGV[3] then
  redis.call('HSET', job, 'images', '[]', 'saved_step', 0, 'saved_evaluations', 0)
  redis.call('HDEL', job, 'arrays')
  redis.call('DEL', resume)
end
drop_unusable_point()
local quarantined = is_quarantined(job)
redis.call('HSET', job, 'status', quarantined and 'queued' or 'running', 'worker', ARGV[1], 'writes', 0,
           'step', number(job, 'saved_step'), 'evaluations', number(job, 'saved_evaluations'),
           'numerics', ARGV[3], 'execution', ARGV[5], 'tracked', number(job, 'losses') > 0 and 1 or 0)
if not quarantined then append(job, events, attempt, EVENT_CAP, ARGV[2]) end
return reply(attempt)
""".replace("EVENT_CAP", str(EVENT_CAP))
)

# Runs the attempt of a quarantined job, now that it is alone in its worker.
# KEYS: job, events. ARGV: attempt, "started" event. Returns 0 when the job is over or has another attempt.
START_ALONE = (
    JOB_FUNCTIONS
    + """
local status = redis.call('HGET', KEYS[1], 'status')
if number(KEYS[1], 'attempt') ~= tonumber(ARGV[1]) then return 0 end
if status == 'running' then return 1 end
if status ~= 'queued' then return 0 end
check_rights(KEYS[1], KEYS[2])
pass_memory_limit()
redis.call('HSET', KEYS[1], 'status', 'running')
append(KEYS[1], KEYS[2], ARGV[1], EVENT_CAP, ARGV[2])
return 1
""".replace("EVENT_CAP", str(EVENT_CAP))
)

# Requeues a job that its worker had no memory to start; fails it if it has lost or exhausted enough workers.
# KEYS: job, events. ARGV: "queued" event, seconds that a failed job is kept. Returns whether the job is queued.
REQUEUE_UNSTARTED = (
    JOB_FUNCTIONS
    + """
local job, events = KEYS[1], KEYS[2]
local status = redis.call('HGET', job, 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
check_rights(job, events)
pass_memory_limit()
local losses, most = add(job, 'losses', 1), number(job, 'max_attempts')
if most > 0 and losses >= most then
  fail(job, events, ARGV[2], 'out_of_memory',
       losses .. ' attempt(s) in a row failed; the last worker had not enough memory to start this job')
  return 0
end
redis.call('HSET', job, 'status', 'queued')
redis.call('HDEL', job, 'execution')
append(job, events, number(job, 'attempt'), EVENT_CAP, ARGV[1])
return 1
""".replace("EVENT_CAP", str(EVENT_CAP))
)

# Applies a `JobUpdate`.
# KEYS: job, events, then one key for each blob. ARGV: the update as JSON, then the blobs: images, arrays, then a resume
# point.
# Returns the flags of `UpdateResult`. At `maxmemory`, only an update that is `essential`, or that comes from outside (a
# cancel, say), is applied. A resume point further than the job was at any loss is progress and resets the losses,
# unless it may be no further: see `exact` at START.
UPDATE = (
    JOB_FUNCTIONS
    + """
local job, events, update = KEYS[1], KEYS[2], cjson.decode(ARGV[1])
local status, watched = unpack(redis.call('HMGET', job, 'status', 'watched'))
if status ~= 'queued' and status ~= 'running' then return 0 end
check_rights(job, events)
local function applied()
  return 1 + (watched == '1' and 2 or 0) + (is_quarantined(job) and 4 or 0)
end
local attempt = number(job, 'attempt')
if update.attempt > 0 then
  if status ~= 'running' or attempt ~= update.attempt then return 0 end
  if number(job, 'writes') >= update.number then return applied() end
  update.fields.writes = update.number
end
if update.essential or update.attempt == 0 then pass_memory_limit() end
if update.ttl > 0 then update.fields.finished_at = string.format('%.6f', clock()) end
local saved = tonumber(update.fields.saved_evaluations or '')
local regaining = update.fields.tracked == '1' and redis.call('HGET', job, 'exact') == '0'
if saved and not regaining and saved > math.max(number(job, 'saved_evaluations'), number(job, 'furthest')) then
  update.fields.losses = 0
end
if update.status ~= '' then update.fields.status = update.status end
local fields = {}
for name, value in pairs(update.fields) do
  fields[#fields + 1], fields[#fields + 2] = name, value
end
if #fields > 0 then redis.call('HSET', job, unpack(fields)) end
local images = #ARGV
if update.resume_ttl > 0 then
  redis.call('SET', KEYS[#KEYS], ARGV[#ARGV], 'EX', update.resume_ttl)
  images = images - 1
end
for i = 2, images do redis.call('SET', KEYS[i + 1], ARGV[i]) end
for _, event in ipairs(update.events) do append(job, events, attempt, update.cap, event) end
if update.ttl > 0 then finish(job, events, update.images, update.ttl, update.status) end
return applied()
"""
)
