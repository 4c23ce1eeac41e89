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

    def check_room(self) -> None:
        """Check that there is memory for new jobs.

        Raises:
            StoreFull: when less than a tenth of `maxmemory` is left.
        """
        if self.limit and self.used > FULL * self.limit:
            raise StoreFull(f"Redis uses {self.used} bytes (allowed: {FULL:.0%} of its maxmemory, {self.limit})")

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
