"""The memory of Redis: whether it keeps what it is given, and whether there is room for more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from denoised.jobs.errors import StoreFull, StoreUnfit

NO_EVICTION = "noeviction"
FULL = 0.9  # of maxmemory; the rest is reserved for accepted jobs


@dataclass(frozen=True)
class Memory:
    """used, limit: in bytes; a limit of 0 means none.
    policy: the `maxmemory-policy`.
    """

    used: int
    limit: int
    policy: str

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Memory:
        """From the reply to INFO memory."""
        limit, policy = int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy", NO_EVICTION))
        return cls(int(info["used_memory"]), limit, policy)

    def check_room(self, reserved: int = 0, needed: int = 0) -> None:
        """Check that there is memory for a new job.

        reserved: bytes that jobs accepted earlier may still write.
        needed: bytes that the new job may write.

        Raises:
            StoreFull: when all of it together would leave less than a tenth of `maxmemory`.
        """
        total = self.used + reserved + needed
        if self.limit and total > FULL * self.limit:
            raise StoreFull(
                f"Redis uses {self.used} bytes, accepted jobs may write {reserved} more, and this job needs {needed} "
                f"(allowed together: {FULL:.0%} of its maxmemory, {self.limit})"
            )

    def check_fitness(self) -> None:
        """Check that Redis keeps what it is given.

        Raises:
            StoreUnfit: when it would evict keys, since queued jobs would silently vanish.
        """
        if self.policy != NO_EVICTION:
            raise StoreUnfit(
                f"Redis would evict jobs to free memory (maxmemory-policy is {self.policy}, allowed: {NO_EVICTION}): "
                f"redis-cli CONFIG SET maxmemory-policy {NO_EVICTION}"
            )
