"""The Lua scripts that read a job's events. Redis runs each of them atomically."""

from __future__ import annotations

# Marks a job as watched, unless Redis refuses writes now: then its worker writes its events less often.
# KEYS: job. Returns the seq of its newest event, 0 when there is no such job.
WATCH = """
local seq = redis.call('HGET', KEYS[1], 'seq')
if not seq then return 0 end
redis.pcall('HSET', KEYS[1], 'watched', 1)
return tonumber(seq) or 0
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
