"""The waiting lists of a model, one for each caller and priority, and the order in which workers draw from them.

The lists are RQ's queues: `{model}` holds the jobs of callers without a key, `{model}/{owner}/{priority}` those of a
key. Workers draw by deficit round robin (Shreedhar and Varghese 1996) with the two kinds of turns of FQ-CoDel
(RFC 8290, section 4.2): the callers with waiting jobs take turns; each has a credit of evaluations, from which its jobs
are paid. A caller whose credit is below the cost of its next job gets `QUANTUM` times its weight, and goes to the end.
A caller that begins to wait is served before those that have waited. When its lists are empty, it stays until all
others had a turn, so that jobs sent one by one have no advantage.

The cost of a job is its evaluations, of one row each; RQ's job has it, and the weight of its caller's key.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from denoised.jobs.record import MAX_WEIGHT, JobRecord
from denoised.jobs.sampling_request import PRIORITIES
from denoised.jobs.store.scripts.script_prelude import PRELUDE

QUANTUM = 64  # evaluations; smaller jobs of a caller that begins to wait are next, larger ones take part in the turns
NEW = -(2**40)  # positions of callers that begin to wait count up from here; those of the others from 1
COST, WEIGHT = "cost", "weight"  # fields of RQ's job


def queue_name(model: str, owner: str = "", priority: str = "normal") -> str:
    """The name of RQ's queue. Neither the name of a model nor that of a key contains a slash."""
    return model if not owner and priority == "normal" else f"{model}/{owner}/{priority}"


# What the scripts of the waiting lists share. `queue` is the key of the model's own queue, `turns` a sorted set of
# callers by position, `credits` a hash of their credits, `job` the key of RQ's job.
# list_of: the key of a caller's list. place_of: the caller and the list that a job was enqueued in.
# cost_of, quantum_of: of a job. join: the caller begins to wait, unless it does already.
# to_front: the caller is next. put_back: a job is next in its list, and has its cost again.
WAITING_LISTS = (
    PRELUDE
    + f"""
local PRIORITIES = {{'high', 'normal', 'low'}}
local function list_of(queue, owner, priority)
  if owner == '' and priority == 'normal' then return queue end
  return queue .. '/' .. owner .. '/' .. priority
end
local function place_of(queue, job)
  local origin = redis.pcall('HGET', job, 'origin')
  local owner, priority = string.match(type(origin) == 'string' and origin or '', '/([%w._-]*)/(%l+)$')
  for _, known in ipairs(PRIORITIES) do
    if priority == known and #owner <= 64 then return owner, list_of(queue, owner, priority) end
  end
  return '', queue
end
local function field(job, name, lowest, highest, default)
  local value = redis.pcall('HGET', job, name)
  value = type(value) == 'string' and tonumber(value) or default
  if value ~= value then value = default end
  return math.min(math.max(value, lowest), highest)
end
local function cost_of(job) return field(job, '{COST}', 1, 1e12, {QUANTUM}) end
local function quantum_of(job) return {QUANTUM} * field(job, '{WEIGHT}', {1 / MAX_WEIGHT}, {MAX_WEIGHT}, 1) end
local function credit_of(credits, owner)
  local credit = tonumber(redis.call('HGET', credits, owner) or '')
  return credit == credit and credit or nil
end
local function join(turns, owner)
  if redis.call('ZSCORE', turns, owner) then return end
  local last = redis.call('ZREVRANGEBYSCORE', turns, '(0', '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
  redis.call('ZADD', turns, last[2] and tonumber(last[2]) + 1 or {NEW}, owner)
end
local function to_front(turns, owner)
  local first = redis.call('ZRANGE', turns, 0, 0, 'WITHSCORES')
  redis.call('ZADD', turns, math.min(first[2] and tonumber(first[2]) or {NEW}, {NEW}) - 1, owner)
end
local function put_back(queue, turns, credits, job, id)
  own(turns, 'zset') own(credits, 'hash')
  local owner, list = place_of(queue, job)
  own(list, 'list')
  local waits = redis.call('ZSCORE', turns, owner)
  local credit = credit_of(credits, owner) or (waits and quantum_of(job) or 0)
  redis.call('HSET', credits, owner, string.format('%.17g', credit + cost_of(job)))
  redis.call('LPUSH', list, id)
  to_front(turns, owner)
end
"""
)

# A caller begins to wait. KEYS: the turns. ARGV: the caller.
JOIN = WAITING_LISTS + "own(KEYS[1], 'zset') join(KEYS[1], ARGV[1])"

# Everything that waits for a model. KEYS: queue, turns, credits. Writes nothing.
# Returns for each caller, the next one first: its name, 1 if it has begun to wait, its credit ("" before its first
# turn), and its lists of job ids, of the highest priority first.
READ_LISTS = (
    WAITING_LISTS
    + """
local found, present = {}, {}
local function add(owner, is_new)
  local lists = {}
  for i, priority in ipairs(PRIORITIES) do
    lists[i] = redis.call('LRANGE', list_of(KEYS[1], owner, priority), 0, -1)
  end
  found[#found + 1] = {owner, is_new and 1 or 0, redis.call('HGET', KEYS[3], owner) or '', unpack(lists)}
  present[owner] = true
end
local turns = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
for i = 1, #turns, 2 do add(turns[i], tonumber(turns[i + 1]) < 0) end
if not present[''] then add('', true) end
return found
"""
)

# Whether anything waits for a model. KEYS: queue, turns. Writes nothing.
HAS_WAITING = (
    WAITING_LISTS
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return 1 end
for _, owner in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  for _, priority in ipairs(PRIORITIES) do
    if redis.call('EXISTS', list_of(KEYS[1], owner, priority)) == 1 then return 1 end
  end
end
return 0
"""
)

# The lengths and the ends of the lists of a model. KEYS: queue, turns. Writes nothing.
# Returns for each caller its name, and for each of its lists, of the highest priority first, the length, the first and
# the last job id ("" if there are none).
READ_ENDS = (
    WAITING_LISTS
    + """
local found, present = {}, {}
local function add(owner)
  local parts = {owner}
  for _, priority in ipairs(PRIORITIES) do
    local list = list_of(KEYS[1], owner, priority)
    parts[#parts + 1] = redis.call('LLEN', list)
    parts[#parts + 1] = redis.call('LINDEX', list, 0) or ''
    parts[#parts + 1] = redis.call('LINDEX', list, -1) or ''
  end
  found[#found + 1] = parts
  present[owner] = true
end
for _, owner in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do add(owner) end
if not present[''] then add('') end
return found
"""
)

# Lets the callers wait whose lists are not empty, in case the turns were lost.
# KEYS: queue, turns, RQ's set of all queues. Returns how many there were.
RESTORE_TURNS = (
    WAITING_LISTS
    + """
pass_memory_limit()
own(KEYS[2], 'zset')
local restored = 0
for _, list in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  if list == KEYS[1] or string.sub(list, 1, #KEYS[1] + 1) == KEYS[1] .. '/' then
    local owner = string.match(string.sub(list, #KEYS[1] + 1), '^/([%w._-]*)/%l+$') or ''
    local waits = redis.pcall('LLEN', list)
    if type(waits) == 'number' and waits > 0 and not redis.call('ZSCORE', KEYS[2], owner) then
      join(KEYS[2], owner)
      restored = restored + 1
    end
  end
end
return restored
"""
)


@dataclass(frozen=True)
class CallerQueue:
    """The waiting jobs of one caller.

    Attributes:
        is_new: It has begun to wait and had no turn.
        credit: In evaluations; None before its first turn.
        lists: Its jobs by priority, the highest first.
    """

    owner: str
    lists: tuple[Sequence[JobRecord], ...]
    is_new: bool = True
    credit: float | None = None

    def with_job(self, job: JobRecord) -> CallerQueue:
        """This queue with one more job at the end of the list of its priority."""
        rank = PRIORITIES.index(job.request.priority)
        lists = tuple([*jobs, job] if k == rank else jobs for k, jobs in enumerate(self.lists))
        return CallerQueue(self.owner, lists, self.is_new, self.credit)


def with_job(queues: Sequence[CallerQueue], job: JobRecord) -> list[CallerQueue]:
    """The queues with one more job; its caller begins to wait if it does not yet."""
    if any(queue.owner == job.owner for queue in queues):
        return [queue.with_job(job) if queue.owner == job.owner else queue for queue in queues]
    new = CallerQueue(job.owner, tuple([] for _ in PRIORITIES)).with_job(job)
    first_old = next((k for k, queue in enumerate(queues) if not queue.is_new), len(queues))
    return [*queues[:first_old], new, *queues[first_old:]]


def draw_order(queues: Iterable[CallerQueue]) -> list[JobRecord]:
    """All waiting jobs in the order in which workers draw them, if no other jobs arrive.

    The same steps as `worker.delivery.rq_scripts.TAKE`. queues: in the order of their turns.
    """
    waiting = [_Caller(queue) for queue in queues]
    fresh = deque(caller for caller in waiting if caller.is_new)
    old = deque(caller for caller in waiting if not caller.is_new)
    order: list[JobRecord] = []
    passed = 0  # turns since the last job was drawn
    while ring := fresh or old:
        caller = ring[0]
        if not caller.jobs:
            ring.popleft()
        elif caller.cost <= caller.credit:
            order.append(caller.draw())
            passed = 0
        elif ring is fresh or passed < len(old):
            ring.popleft()
            caller.credit += caller.quantum
            old.append(caller)
            passed += ring is old
        else:
            _add_rounds(old)
            passed = 0
    return order


def _add_rounds(callers: Iterable[_Caller]) -> None:
    """Nobody can pay: give each the quanta of all the rounds until the first one can."""
    waiting = [caller for caller in callers if caller.jobs]
    rounds = min(caller.rounds for caller in waiting)
    for caller in waiting:
        caller.credit += rounds * caller.quantum


class _Caller:
    """A caller in `draw_order`."""

    def __init__(self, queue: CallerQueue) -> None:
        self.is_new = queue.is_new
        self.jobs = deque(job for jobs in queue.lists for job in jobs)
        self.credit = queue.credit if queue.credit is not None else self.quantum

    @property
    def quantum(self) -> float:
        return QUANTUM * self.jobs[0].weight if self.jobs else 0.0

    @property
    def cost(self) -> int:
        return max(1, self.jobs[0].request.evaluations)

    @property
    def rounds(self) -> int:
        """Until it can pay for its next job."""
        return math.ceil((self.cost - self.credit) / self.quantum)

    def draw(self) -> JobRecord:
        self.credit -= self.cost
        return self.jobs.popleft()
