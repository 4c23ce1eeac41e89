"""Who is in the running batch: admission, choice, eviction. No arithmetic; imports no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar


class Member(Protocol):
    """What the batch needs to know of a trajectory."""

    job: str
    model: str

    @property
    def finished(self) -> bool: ...

    @property
    def pending_evaluations(self) -> int: ...


T = TypeVar("T", bound=Member)


class RunningBatch(Generic[T]):
    """At most `lanes` trajectories run; the others wait in the order they came.

    One turn serves one model; models take turns, the one served longest ago first.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.running: list[T] = []
        self.waiting: deque[T] = deque()
        self._last_served: dict[str, int] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)

    @property
    def has_room(self) -> bool:
        """Whether another job may come: there is a free lane that nobody waits for."""
        return len(self) < self.lanes

    @property
    def pending_evaluations(self) -> int:
        """Network calls until everybody here is done."""
        return sum(member.pending_evaluations for member in (*self.running, *self.waiting))

    def admit(self, newcomers: Iterable[T]) -> None:
        """Take trajectories in; they run from the next turn on, as far as there are lanes."""
        self.waiting.extend(newcomers)
        self._fill()

    def choose(self) -> list[T]:
        """The members of this turn: all of one model that run, oldest first; [] when nobody is here."""
        if not self.running:
            return []
        models = {member.model for member in self.running}
        chosen = min(models, key=lambda model: (self._last_served.get(model, -1), model))
        self._turn += 1
        self._last_served[chosen] = self._turn
        return [member for member in self.running if member.model == chosen]

    def retire(self) -> list[T]:
        """Remove the finished; their lanes go to those who wait."""
        finished = [member for member in self.running if member.finished]
        self.running = [member for member in self.running if not member.finished]
        self._fill()
        return finished

    def evict(self, job: str) -> list[T]:
        """Remove everything of a job, finished or not."""
        gone = [member for member in (*self.running, *self.waiting) if member.job == job]
        self.running = [member for member in self.running if member.job != job]
        self.waiting = deque(member for member in self.waiting if member.job != job)
        self._fill()
        return gone

    def _fill(self) -> None:
        while self.waiting and len(self.running) < self.lanes:
            self.running.append(self.waiting.popleft())
