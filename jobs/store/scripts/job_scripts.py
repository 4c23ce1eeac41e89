"""The Lua scripts that change a job. Redis runs each of them atomically."""

from __future__ import annotations

from denoised.jobs.format import FORMAT
from denoised.jobs.record import ARRAY_NAMES
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.script_prelude import PRELUDE
from denoised.jobs.store.scripts.webhook_scripts import QUEUE_WEBHOOK

EVENT_CAP = 50_000  # stored events of a job; older ones are dropped

MAX_RECORD_BYTES = 4 << 20  # of all fields of a job's record together; a record of 1,024 images has a tenth of it
MAX_RECORD_FIELDS = 100
MAX_RESUME_BYTES = 256 << 20
MAX_PICTURE_BYTES = 64 << 20  # encoded; noise of 4096×5400 pixels in color takes as much
MAX_OWNER_BYTES = 100
MAX_IMAGES = 4096  # image keys that the end of a job lets expire, whatever its record says

# Shared by START, START_ALONE, REQUEUE_UNSTARTED, UPDATE and READ.
# number, add: treat a damaged value as zero, where HINCRBY would fail.
# record_of: the record's fields and values, false when there are more of them than any record has.
# xadd: replaces a key that is not a stream.
# append: numbers an event after the newest one; a damaged `seq` is corrected from the stream.
# check_rights: raises NOPERM before anything is written, so that the call can be repeated (Redis 7 and newer).
# release_inputs: lets the pictures expire that no other job starts from; `inputs` of the record names their keys.
# keep_images: the images of a job count as kept by its caller until they expire; only of jobs that succeed.
# finish: announces that a job is over, queues its webhook, lets its keys expire, drops its resume point, counts it.
# fail: ends a job that no worker ends itself.
_SHARED = (
    PRELUDE
    + QUEUE_WEBHOOK
    + f"""
local function number(job, name)
  local value = tonumber(redis.call('HGET', job, name) or 0) or 0
  if value ~= value or value < 0 or value > 9007199254740991 then return 0 end
  return value
end
local function add(job, name, more)
  local value = number(job, name) + more
  redis.call('HSET', job, name, string.format('%.0f', value))
  return value
end
local function record_of(job)
  if redis.call('HLEN', job) > {MAX_RECORD_FIELDS} then return false end
  local bytes = 0
  for _, name in ipairs(redis.call('HKEYS', job)) do bytes = bytes + #name + redis.call('HSTRLEN', job, name) end
  if bytes > {MAX_RECORD_BYTES} then return false end
  return redis.call('HGETALL', job)
end
local function is_quarantined(job)
  local losses = number(job, 'losses')
  return losses > 0 and losses >= number(job, 'max_attempts') - 1
end
local function request_of(job)
  if redis.call('HSTRLEN', job, 'request') > {MAX_RECORD_BYTES} then return {{}} end
  local read, request = pcall(cjson.decode, redis.call('HGET', job, 'request') or '')
  return read and type(request) == 'table' and request or {{}}
end
local function failed(reply) return type(reply) == 'table' and reply.err ~= nil end
local function xadd(key, ...)
  local reply = redis.pcall('XADD', key, ...)
  if failed(reply) and redis.call('TYPE', key).ok ~= 'stream' then
    redis.call('DEL', key)
    reply = redis.pcall('XADD', key, ...)
  end
  return reply
end
local function check_rights(job, events)
  if not redis.acl_check_cmd then return end
  local commands = {{{{'HSET', job, 'x', ''}}, {{'XADD', events, '*', 'x', ''}}, {{'SET', job .. ':resume', ''}},
                    {{'EXPIRE', job, '1'}}, {{'DEL', job .. ':resume'}}}}
  for _, command in ipairs(commands) do
    if not redis.acl_check_cmd(unpack(command)) then redis.call(unpack(command)) end  -- raises it
  end
end
local function append(job, events, attempt, cap, event)
  local function entry(seq)
    local id = string.format('%.0f', seq) .. '-0'
    return xadd(events, 'MAXLEN', '~', cap, id, 'a', attempt, 'e', event, 'f', {FORMAT})
  end
  local seq = add(job, 'seq', 1)
  local reply = entry(seq)
  if failed(reply) then
    if string.find(reply.err, 'ACL', 1, true) or string.find(reply.err, 'NOPERM', 1, true) then error(reply.err) end
    local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
    seq = (last and tonumber(string.match(last[1], '^%d+')) or seq - 1) + 1
    if failed(entry(seq)) then
      redis.call('DEL', events)
      seq = 1 entry(seq)
    end
    redis.call('HSET', job, 'seq', string.format('%.0f', seq))
  end
end
local function release_inputs(job, ttl)
  if redis.call('HSTRLEN', job, 'inputs') > {MAX_RECORD_BYTES} then return end
  local read, inputs = pcall(cjson.decode, redis.call('HGET', job, 'inputs') or '')
  if not read or type(inputs) ~= 'table' then return end
  for _, key in pairs(inputs) do
    if type(key) == 'string' and string.sub(key, 1, #'{keys.INPUTS}') == '{keys.INPUTS}' then
      redis.pcall('SREM', key .. ':jobs', string.sub(job, #'{keys.job("")}' + 1))
      if redis.call('EXISTS', key .. ':jobs') == 0 then redis.call('EXPIRE', key, ttl) end
    end
  end
end
local function keep_images(job, ttl, status)
  local owner = redis.call('HSTRLEN', job, 'owner') <= {MAX_OWNER_BYTES} and redis.call('HGET', job, 'owner') or ''
  if owner == '' then return end
  local count = tonumber(request_of(job).n) or 0
  local member = string.sub(job, #'{keys.job("")}' + 1) .. ':' .. string.format('%.0f', count)
  if status == 'succeeded' then
    redis.pcall('ZADD', '{keys.KEPT}' .. owner, 'XX', clock() + tonumber(ttl), member)
  else
    redis.pcall('ZREM', '{keys.KEPT}' .. owner, member)
  end
end
local function finish(job, events, images, ttl, status)
  xadd('{keys.ENDS}', 'MAXLEN', '~', 10000, '*', 'job', string.sub(job, #'{keys.job("")}' + 1))
  for _, key in ipairs({{job, events}}) do redis.call('EXPIRE', key, ttl) end
  local arrays = redis.call('HEXISTS', job, 'arrays') == 1 and {{{", ".join(map(repr, ARRAY_NAMES))}}} or {{}}
  for i = 0, math.min(images, {MAX_IMAGES}) - 1 do
    redis.call('EXPIRE', job .. ':image:' .. i, ttl)
    for _, name in ipairs(arrays) do redis.call('EXPIRE', job .. ':array:' .. i .. ':' .. name, ttl) end
  end
  redis.call('DEL', job .. ':resume')
  release_inputs(job, ttl)
  keep_images(job, ttl, status)
  local request = request_of(job)
  queue_webhook(job, request.webhook, ttl)
  local model = request.model
  local total = status .. ':' .. (type(model) == 'string' and #model <= 200 and model or '?')
  if failed(redis.pcall('HINCRBY', '{keys.JOB_TOTALS}', total, 1)) then
    redis.pcall('HSET', '{keys.JOB_TOTALS}', total, 1)
  end
end
local function fail(job, events, ttl, code, message)
  redis.call('HSET', job, 'status', 'failed', 'finished_at', string.format('%.6f', clock()),
             'error', cjson.encode({{code = code, message = message}}))
  append(job, events, number(job, 'attempt'), {EVENT_CAP}, '{{"type": "failed"}}')
  finish(job, events, tonumber(request_of(job).n) or 0, ttl, 'failed')
end
"""
)

# Reads a job's record. KEYS: job. Returns its fields and values, false when it is larger than any record is.
READ = _SHARED + "return record_of(KEYS[1])"

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
    _SHARED
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
    _SHARED
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
    _SHARED
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
    _SHARED
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
