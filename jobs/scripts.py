"""The Lua scripts that change a job. Redis runs each of them atomically."""

from __future__ import annotations

from denoised.jobs import redis_keys as keys
from denoised.jobs.format import FORMAT

# Shared by START, START_ALONE and UPDATE.
# number, add: treat a damaged value as zero, where HINCRBY would fail.
# finish: announces that a job is over, lets its keys expire, drops its resume point, and counts it.
_SHARED = f"""
local function number(job, name) return tonumber(redis.call('HGET', job, name) or 0) or 0 end
local function add(job, name, more)
  local value = number(job, name) + more
  redis.call('HSET', job, name, value)
  return value
end
local function is_quarantined(job)
  local losses = number(job, 'losses')
  return losses > 0 and losses >= number(job, 'max_attempts') - 1
end
local function request_of(job)
  local read, request = pcall(cjson.decode, redis.call('HGET', job, 'request') or '')
  return read and type(request) == 'table' and request or {{}}
end
local function append(job, events, attempt, event)
  local seq = add(job, 'seq', 1)
  redis.call('XADD', events, seq .. '-0', 'a', attempt, 'e', event, 'f', {FORMAT})
end
local function finish(job, events, images, ttl, status)
  redis.call('XADD', '{keys.ENDS}', 'MAXLEN', '~', 10000, '*', 'job', string.sub(job, #'{keys.job("")}' + 1))
  redis.call('EXPIRE', job, ttl)
  redis.call('EXPIRE', events, ttl)
  for i = 0, images - 1 do redis.call('EXPIRE', job .. ':image:' .. i, ttl) end
  redis.call('DEL', job .. ':resume')
  local model = request_of(job).model or '?'
  redis.call('HINCRBY', '{keys.JOB_TOTALS}', status .. ':' .. tostring(model), 1)
end
"""

# Starts an attempt.
# KEYS: job, events. ARGV: time, worker, "started" event, numerics, seconds that a failed job is kept, execution.
# Returns the attempt's number, or 0 when the job is over: ended before, or failed now for its losses. Repeated for the
# same execution (the reply was lost) it changes nothing. Pictures and resume point of earlier attempts are kept while
# the numerics are the same.
#
# A job that is found running has lost its worker, which counts as one loss; UPDATE resets the count when the job makes
# progress. One loss before `max_attempts` the job is quarantined: it stays "queued" until START_ALONE, so that losing
# the worker while it waits for the batch to empty is not counted.
START = (
    _SHARED
    + """
local job, events = KEYS[1], KEYS[2]
local status = redis.call('HGET', job, 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
local attempt = number(job, 'attempt')
if redis.call('HGET', job, 'execution') == ARGV[6] then return attempt end
if status == 'running' then add(job, 'losses', 1) end
local losses, most = number(job, 'losses'), number(job, 'max_attempts')
if most > 0 and losses >= most then
  local message = losses .. ' worker(s) in a row were lost while they ran this job, without progress in between'
  redis.call('HSET', job, 'status', 'failed', 'finished_at', ARGV[1],
             'error', cjson.encode({code = 'worker_lost', message = message}))
  append(job, events, attempt, '{"type": "failed"}')
  finish(job, events, tonumber(request_of(job).n) or 0, ARGV[5], 'failed')
  return 0
end
if redis.call('HEXISTS', job, 'started_at') == 1 then
  attempt = add(job, 'attempt', 1)
else
  redis.call('HSET', job, 'started_at', ARGV[1])
end
if redis.call('HGET', job, 'numerics') ~= ARGV[4] then
  redis.call('HSET', job, 'images', '[]', 'saved_step', 0, 'saved_evaluations', 0)
  redis.call('DEL', job .. ':resume')
end
local quarantined = is_quarantined(job)
redis.call('HSET', job, 'status', quarantined and 'queued' or 'running', 'worker', ARGV[2], 'writes', 0,
           'step', number(job, 'saved_step'), 'evaluations', number(job, 'saved_evaluations'),
           'numerics', ARGV[4], 'execution', ARGV[6])
if not quarantined then append(job, events, attempt, ARGV[3]) end
return attempt
"""
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
redis.call('HSET', KEYS[1], 'status', 'running')
append(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
return 1
"""
)

# Applies a `JobUpdate`.
# KEYS: job, events, then one key for each blob. ARGV: the update as JSON, then the blobs: images, then a resume point.
# Returns the flags of `UpdateResult`. A resume point further than the last one is progress and resets the losses.
UPDATE = (
    _SHARED
    + """
local job, events, update = KEYS[1], KEYS[2], cjson.decode(ARGV[1])
local status, watched = unpack(redis.call('HMGET', job, 'status', 'watched'))
if status ~= 'queued' and status ~= 'running' then return 0 end
local function applied()
  return 1 + (watched == '1' and 2 or 0) + (is_quarantined(job) and 4 or 0)
end
local attempt = number(job, 'attempt')
if update.attempt > 0 then
  if status ~= 'running' or attempt ~= update.attempt then return 0 end
  if number(job, 'writes') >= update.number then return applied() end
  update.fields.writes = update.number
end
local saved = tonumber(update.fields.saved_evaluations or '')
if saved and saved > number(job, 'saved_evaluations') then update.fields.losses = 0 end
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
local more = #update.events
if more > 0 then
  local seq = add(job, 'seq', more) - more
  for i, event in ipairs(update.events) do
    redis.call('XADD', events, 'MAXLEN', '~', update.cap, (seq + i) .. '-0', 'a', attempt, 'e', event, 'f', FORMAT)
  end
end
if update.ttl > 0 then finish(job, events, update.images, update.ttl, update.status) end
return applied()
""".replace("FORMAT", str(FORMAT))
)

# Marks a job as watched.
# KEYS: job. Returns the seq of its newest event, 0 when there is no such job.
WATCH = """
local seq = redis.call('HGET', KEYS[1], 'seq')
if not seq then return 0 end
redis.call('HSET', KEYS[1], 'watched', 1)
return tonumber(seq)
"""

# Reads a page of events. KEYS: the events. ARGV: the seq before it, its largest size in bytes and in entries.
# Always returns the first entry, however large.
READ_EVENTS = """
local page, size, from = {}, 0, string.format('%.0f', ARGV[1] + 1) .. '-0'
while size < tonumber(ARGV[2]) and #page < tonumber(ARGV[3]) do
  local entry = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1)[1]
  if not entry then break end
  for _, value in ipairs(entry[2]) do size = size + #value end
  page[#page + 1] = entry
  from = '(' .. entry[1]
end
return page
"""

# Requeues the jobs of lost workers at the front of their queue, the oldest first.
# KEYS: RQ's queue, its intermediate queue, its started registry; our hash of when ids were first seen in the
# intermediate queue. ARGV: time, seconds an id may stay there, prefix of RQ's job hashes, prefix of our jobs, channel.
# Returns how many. An id leaves the intermediate queue as soon as its worker registers the lease; one without a lease
# that stays there belonged to a worker that died in that instant.
REQUEUE_LOST = """
local queue, intermediate, started, seen = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, grace = tonumber(ARGV[1]), tonumber(ARGV[2])
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
local present = {}
for _, id in ipairs(redis.call('LRANGE', intermediate, 0, -1)) do
  present[id] = true
  if not held[id] then
    local since = redis.call('HGET', seen, id)
    if not since then redis.call('HSET', seen, id, now)
    elseif now - tonumber(since) >= grace then lost[id] = true end
  end
end
for _, id in ipairs(redis.call('HKEYS', seen)) do
  if lost[id] or held[id] or not present[id] then redis.call('HDEL', seen, id) end
end
local jobs = {}
for id in pairs(lost) do
  redis.call('LREM', intermediate, 0, id)
  if redis.call('EXISTS', ARGV[3] .. id) == 1 and not redis.call('LPOS', queue, id) then
    jobs[#jobs + 1] = {id = id, created = tonumber(redis.call('HGET', ARGV[4] .. id, 'created_at') or 0) or 0}
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

# Adds a worker's counters to the totals. Repeated or overtaken calls add only what is new.
# KEYS: the totals, what was added for this worker so far. ARGV: seconds to remember that, then names and values.
ADD_COUNTERS = """
for i = 2, #ARGV, 2 do
  local more = tonumber(ARGV[i + 1]) - (tonumber(redis.call('HGET', KEYS[2], ARGV[i]) or 0) or 0)
  if more > 0 then
    redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], more)
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
"""
