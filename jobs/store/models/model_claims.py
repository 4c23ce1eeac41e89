"""Which weights a model's name stands for: the claims of the workers that serve it.

A name is a queue. Two workers may serve it together only if their models have the same digest, or equal requests would
give different pictures. Redis' clock decides when a claim has expired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.script_prelude import PRELUDE
from denoised.jobs.store.store_connection import StoreConnection

DRAIN, DONE = "drain", "done"
LONGEST_SECONDS = 86_400  # of a claim; one that ends later is damaged, or Redis' clock was wrong when it was made

# Claims or renews all of a worker's models, or none of them.
# KEYS: the claims on each model. ARGV: seconds, the worker, then the digest of each model.
# Returns nothing, or {position of the model, member, expiry} of a claim under another digest.
CLAIM = (
    PRELUDE
    + f"""
local now = clock()
for i, key in ipairs(KEYS) do
  own(key, 'zset')
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  redis.call('ZREMRANGEBYSCORE', key, now + {LONGEST_SECONDS}, '+inf')
  local members = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for k = 1, #members, 2 do
    if string.match(members[k], '^(%S*) ') ~= ARGV[i + 2] then return {{i, members[k], members[k + 1]}} end
  end
end
for i, key in ipairs(KEYS) do
  redis.call('ZADD', key, now + ARGV[1], ARGV[i + 2] .. ' ' .. ARGV[2])
  redis.call('PEXPIRE', key, math.ceil(1000 * ARGV[1]))
end
return false
"""
)


# Replaces the digest of a model in all claims on it, in steps, so that no two digests are ever served at once.
# KEYS: the claims, the workers that wait. ARGV: seconds, the worker, the new digest, its phase: "ready" when it has
# loaded the new weights, "drained" when no job runs with its old ones. A waiting worker's claim is renewed.
# Returns a worker that has not loaded the new weights; "drain" when all have; "done" when the claims are replaced.
SWITCH = (
    PRELUDE
    + f"""
local claims, waiting, now = KEYS[1], KEYS[2], clock()
pass_memory_limit()
for _, key in ipairs(KEYS) do
  own(key, 'zset')
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  redis.call('ZREMRANGEBYSCORE', key, now + {LONGEST_SECONDS}, '+inf')
end
local ttl, own_name = tonumber(ARGV[1]), ARGV[3] .. ' ' .. ARGV[2]
for _, phase in ipairs({{'ready', 'drained'}}) do redis.call('ZREM', waiting, own_name .. ' ' .. phase) end
redis.call('ZADD', waiting, now + ttl, own_name .. ' ' .. ARGV[4])
redis.call('PEXPIRE', waiting, math.ceil(1000 * ttl))
local answer, old = 'done', {{}}
for _, member in ipairs(redis.call('ZRANGE', claims, 0, -1)) do
  local digest, worker = string.match(member, '^(%S*) (.*)$')
  if worker == ARGV[2] then redis.call('ZADD', claims, now + ttl, member) end
  if digest ~= ARGV[3] then
    old[#old + 1] = {{member, worker}}
    if not redis.call('ZSCORE', waiting, ARGV[3] .. ' ' .. worker .. ' drained') then
      if not redis.call('ZSCORE', waiting, ARGV[3] .. ' ' .. worker .. ' ready') then return worker end
      answer = 'drain'
    end
  end
end
redis.call('PEXPIRE', claims, math.ceil(1000 * ttl))
if answer ~= 'done' then return answer end
for _, each in ipairs(old) do
  redis.call('ZADD', claims, redis.call('ZSCORE', claims, each[1]), ARGV[3] .. ' ' .. each[2])
  redis.call('ZREM', claims, each[1])
end
redis.call('ZADD', claims, now + ttl, own_name)
redis.call('PEXPIRE', claims, math.ceil(1000 * ttl))
return answer
"""
)


@dataclass(frozen=True)
class ModelClaim:
    """A worker's claim on a model's name.

    Attributes:
        expires_at: By Redis' clock, in seconds since the epoch.
    """

    model: str
    digest: str
    worker: str
    expires_at: float


class ModelClaims:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection
        self._claim = connection.client.register_script(CLAIM)
        self._switch = connection.client.register_script(SWITCH)

    def claim(self, worker: str, digests: Mapping[str, str], ttl: float) -> ModelClaim | None:
        """Claim models for `ttl` seconds, or renew the claims. digests: of each model, by name.

        Returns another worker's claim on one of them under another digest; nothing is claimed then.
        """
        names = [keys.claims(model) for model in digests]
        with self._connection.reachable():
            found = self._claim(keys=names, args=[repr(ttl), worker, *digests.values()])
        if not found:
            return None
        position, member, expiry = found
        digest, _, other = member.decode(errors="replace").partition(" ")
        return ModelClaim(list(digests)[position - 1], digest, other, float(expiry))

    def switch(self, model: str, worker: str, digest: str, phase: str, ttl: float) -> str:
        """A step toward serving a model with another digest; the claim on its old one lasts `ttl` seconds more.

        phase: `ready` when the new weights are loaded, `drained` when no job of this worker runs with the old ones.

        Returns:
            The name of a worker that has not loaded the new weights; DRAIN when all have; DONE when all are drained,
            and the claims are those on the new digest.
        """
        with self._connection.reachable():
            names = [keys.claims(model), keys.next_claims(model)]
            answer = cast("bytes", self._switch(keys=names, args=[repr(ttl), worker, digest, phase]))
        return answer.decode(errors="replace")

    def shared(self, models: Iterable[str]) -> frozenset[str]:
        """Those of these models that more than one worker claims."""
        names = list(models)
        with self._connection.reachable(), self._connection.client.pipeline(transaction=False) as pipe:
            for model in names:
                pipe.zcard(keys.claims(model))
            counts = pipe.execute()
        return frozenset(model for model, count in zip(names, counts, strict=True) if count > 1)

    def release(self, worker: str, digests: Mapping[str, str]) -> None:
        """Give up a worker's claims."""
        with self._connection.reachable(), self._connection.client.pipeline() as pipe:
            for model, digest in digests.items():
                pipe.zrem(keys.claims(model), f"{digest} {worker}")
            pipe.execute()
