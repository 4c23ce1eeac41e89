"""Divides the slots of a turn among callers: in proportion to the weights of their keys, counted in evaluated rows.

Within a caller's jobs the order is the running batch's own. No arithmetic on tensors; imports no torch.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


@dataclass(frozen=True)
class Caller:
    """Whose job a trajectory is of.

    Attributes:
        owner: The name; all callers without a key have an empty one.
        weight: Of the caller's key.
        urgency: The place of the job's priority among `PRIORITIES`; 0 is the most urgent.
    """

    owner: str = ""
    weight: float = 1.0
    urgency: int = 1


ANONYMOUS = Caller()


class Served(Protocol):
    """What the division needs to know about a trajectory.

    Attributes:
        rows: That its next evaluation takes.
    """

    caller: Caller

    @property
    def rows(self) -> int: ...


T = TypeVar("T", bound=Served)


class CallerShares:
    """How much each caller has had, divided by its weight, since it has been in the batch."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}

    def of(self, owners: Iterable[str]) -> dict[str, float]:
        """What these callers have had; one that was not here before begins where the one served least is."""
        known = {owner: self._served[owner] for owner in owners if owner in self._served}
        least = min(known.values(), default=0.0)
        return {owner: known.get(owner, least) - least for owner in owners}

    def add(self, served: Mapping[str, float], present: Collection[str]) -> None:
        """Add what callers have had. Those that are not present are forgotten."""
        self._served = {owner: before + served.get(owner, 0.0) for owner, before in self.of(present).items()}


class FairSlots:
    """Counts the rows that each caller has had."""

    def __init__(self) -> None:
        self._shares = CallerShares()

    def choose(self, members: Sequence[T], slots: int) -> list[T]:
        """The members that get the slots: of the caller served least, its first member, again and again.

        members: in the order of the batch, which decides within a caller, and between two that were served equally.
        """
        queues: dict[str, deque[T]] = {}
        for member in members:
            queues.setdefault(member.caller.owner, deque()).append(member)
        if len(queues) == 1:
            return list(members[:slots])
        served = self._shares.of(queues)
        chosen: list[T] = []
        while queues and len(chosen) < slots:
            owner = min(queues, key=served.__getitem__)
            member = queues[owner].popleft()
            chosen.append(member)
            served[owner] += member.rows / member.caller.weight
            if not queues[owner]:
                del queues[owner]
        return chosen

    def count(self, members: Iterable[Served], present: Collection[str]) -> None:
        """Count a turn of these members. present: the callers that have members in the batch; others are forgotten."""
        served: defaultdict[str, float] = defaultdict(float)
        for member in members:
            served[member.caller.owner] += member.rows / member.caller.weight
        self._shares.add(served, present)
