"""The Lua functions that the scripts of `jobs.store.scripts.job_scripts` share, and the limits of a job's keys."""

from __future__ import annotations

from denoised.jobs.format import FORMAT
from denoised.jobs.record import ARRAY_NAMES
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.script_prelude import PRELUDE
from denoised.jobs.store.scripts.webhook_scripts import QUEUE_WEBHOOK

EVENT_CAP = 50_000  # stored events of a job; older ones are dropped

MAX_RECORD_BYTES = 4 << 20  # of all fields of a job's record together; a record of 1,024 images has a tenth of it
MAX_RECORD_FIELDS = 100
MAX_PICTURE_BYTES = 64 << 20  # encoded; noise of 4096×5400 pixels in color takes as much
MAX_OWNER_BYTES = 100
MAX_IMAGES = 4096  # image keys that the end of a job lets expire, whatever its record says

# The functions:
# number, add: treat a damaged value as zero, where HINCRBY would fail.
# record_of: the record's fields and values, false when there are more of them than any record has.
# xadd: replaces a key that is not a stream.
# append: numbers an event after the newest one; a damaged `seq` is corrected from the stream.
# check_rights: raises NOPERM before anything is written, so that the call can be repeated (Redis 7 and newer).
# release_inputs: lets the pictures expire that no other job starts from; `inputs` of the record names their keys.
# keep_images: the images of a job count as kept by its caller until they expire; only of jobs that succeed.
# finish: announces that a job is over, queues its webhook, lets its keys expire, drops its resume point, counts it.
# fail: ends a job that no worker ends itself.
JOB_FUNCTIONS = (
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
