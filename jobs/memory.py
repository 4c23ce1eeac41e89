"""What Redis says of its memory: whether it keeps what it was given, and whether there is room for more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from denoised.jobs.errors import StoreFull, StoreUnfit

KEEPS = "noeviction"
FULL = 0.9  # of maxmemory; the rest is for jobs that were accepted to end in


@dataclass(frozen=True)
class Memory:
    """used, limit: bytes, a limit of 0 is none; policy: what is done at the limit."""

    used: int
    limit: int
    policy: str

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Memory:
        """From Redis' answer to INFO memory."""
        limit, policy = int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy", KEEPS))
        return cls(int(info["used_memory"]), limit, policy)

    def check_room(self) -> None:
        """Nothing, when there is memory for new jobs beside those that are there.

        Raises:
            StoreFull: when less than a tenth of `maxmemory` is left.
        """
        if self.limit and self.used > FULL * self.limit:
            raise StoreFull(f"Redis uses {self.used} bytes (allowed: {FULL:.0%} of its maxmemory, {self.limit})")

    def check_fitness(self) -> None:
        """Nothing, when Redis keeps what it was given.

        Raises:
            StoreUnfit: when it would drop keys to make room: queued jobs would vanish without a word.
        """
        if self.policy != KEEPS:
            raise StoreUnfit(
                f"Redis would drop jobs to make room (maxmemory-policy is {self.policy}, allowed: {KEEPS}); "
                f"redis-cli CONFIG SET maxmemory-policy {KEEPS}"
            )
