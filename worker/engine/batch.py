"""Who is in the running batch, and whose turn it is: admission, choice, eviction. No arithmetic; imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

PLACES = 4  # of a model, for each lane
FEWEST_PLACES = 64
WAITERS = 4  # one lane in so many goes to those who have waited longest


class Member(Protocol):
    """What the batch needs to know of a trajectory."""

    job: str
    model: str

    @property
    def finished(self) -> bool: ...

    @property
    def pending_evaluations(self) -> int: ...


T = TypeVar("T", bound=Member)


@dataclass(eq=False)
class Place(Generic[T]):
    """A member and how it was treated.

    number: how many came before it; last_turn: the batch's turn in which it last took part, or, until it
    has, the last one before it came; away: whether that turn is not over.
    """

    member: T
    number: int
    last_turn: int
    begun: bool = False
    away: bool = False


class RunningBatch(Generic[T]):
    """One turn serves one model, the one served longest ago first, and at most `lanes` of its members.

    When more want the turn, most lanes go to the jobs nearest their end, so that a short job never waits for a
    long one; `reserved` lanes, a quarter, go to those who have waited longest since their last turn, so that
    nobody starves. While a member waits at most ⌊(m − 1) / reserved⌋ turns of its model pass, m being the
    model's members when it began to: in each of them `reserved` who had waited longer go, and who comes later
    has waited less.

    A model that `flies` and has so many members here has two turns at once, of half the lanes and the reserved: who is
    in one is away until it lands, while the next is chosen of the others. Where there are lanes for all, half of them
    go, who have waited longest; nobody is passed over twice then.

    Each model has `places`, beyond which nobody is to be admitted: that bounds m, and memory.
    """

    def __init__(self, lanes: int, flies: Mapping[str, int] | None = None) -> None:
        self.lanes = lanes
        self._flies = {model: fewest for model, fewest in (flies or {}).items() if fewest <= lanes}
        self.reserved = max(1, lanes // WAITERS)
        self.places = max(PLACES * lanes, FEWEST_PLACES)
        self._here: list[Place[T]] = []
        self._came = 0
        self._turn = 0
        self._last_turn: dict[str, int] = {}  # by model

    def __len__(self) -> int:
        return len(self._here)

    @property
    def members(self) -> list[T]:
        """Everybody here, oldest first."""
        return [place.member for place in self._here]

    def free_lanes(self, model: str) -> int:
        """How many more of a model would be in each of its turns."""
        return max(0, self.lanes - self._count(model))

    def has_room(self, model: str) -> bool:
        """Whether one more job of a model may come."""
        return self._count(model) < self.places

    @property
    def pending_evaluations(self) -> int:
        """Network calls until everybody here is done."""
        return self.pending_by_job().total()

    def pending_by_job(self) -> Counter[str]:
        """Network calls until each job is done."""
        pending: Counter[str] = Counter()
        for member in self.members:
            pending[member.job] += member.pending_evaluations
        return pending

    def admit(self, newcomers: Iterable[T]) -> None:
        """Take all images of a job in; they can be in the next turn."""
        for member in newcomers:
            self._here.append(Place(member, self._came, self._turn))
            self._came += 1

    def choose(self) -> list[T]:
        """The members of the next turn, oldest first; [] when nobody is here, or who is away is to land first."""
        waiting = [place for place in self._here if not place.away]
        models = {place.member.model for place in waiting}
        if not models:
            return []
        model = min(models, key=lambda model: (self._last_turn.get(model, -1), model))
        flying = self._flying(model)
        if self.away and not flying:
            return []
        self._turn += 1
        self._last_turn[model] = self._turn
        group = [place for place in waiting if place.member.model == model]
        chosen = self._half(group) if flying else _fair(group, self.lanes)
        for place in chosen:
            place.last_turn, place.begun, place.away = self._turn, True, flying
        return [place.member for place in chosen]

    @property
    def away(self) -> bool:
        """Whether anybody is, in turns that were chosen and have not landed."""
        return any(place.away for place in self._here)

    @property
    def turn_lanes(self) -> int:
        """How many the turn that was chosen last might have held."""
        return -(-self.lanes // 2) if self.away else self.lanes

    def land(self, members: Iterable[T]) -> list[T]:
        """A turn of these is over. Returns those of them who are still here."""
        turn = set(map(id, members))
        landed = [place for place in self._here if id(place.member) in turn]
        for place in landed:
            place.away = False
        return [place.member for place in landed]

    def retire(self) -> list[T]:
        """Remove the finished."""
        finished = [member for member in self.members if member.finished]
        self._here = [place for place in self._here if not place.member.finished]
        return finished

    def evict(self, job: str) -> list[T]:
        """Remove everything of a job, finished or not."""
        gone = [member for member in self.members if member.job == job]
        self._here = [place for place in self._here if place.member.job != job]
        return gone

    def _count(self, model: str) -> int:
        return sum(place.member.model == model for place in self._here)

    def _flying(self, model: str) -> bool:
        """Whether there are enough of a model for two turns at once."""
        return model in self._flies and self._count(model) >= self._flies[model]

    def _half(self, group: list[Place[T]]) -> list[Place[T]]:
        """Those of a model's waiting members who take part in one of two turns at once."""
        count = self._count(group[0].member.model)
        if count > self.lanes:
            return _fair(group, -(-self.lanes // 2))
        longest = sorted(group, key=lambda place: (place.last_turn, place.begun, place.number))
        return sorted(longest[: -(-count // 2)], key=lambda place: place.number)


def _fair(group: list[Place[T]], lanes: int) -> list[Place[T]]:
    """Those of a group who take part; group and outcome are in the order of arrival."""
    if len(group) <= lanes:
        return group
    reserved = max(1, lanes // WAITERS)
    by_length = _by_length(group)
    certain, others = by_length[: lanes - reserved], by_length[lanes - reserved :]
    others.sort(key=lambda place: (place.last_turn, place.begun, place.number))
    return sorted(certain + others[:reserved], key=lambda place: place.number)


def _by_length(group: list[Place[T]]) -> list[Place[T]]:
    """The job nearest its end first, the older of two; of a job who has farthest to go."""
    to_go: dict[str, int] = {}
    for place in group:
        member = place.member
        to_go[member.job] = max(to_go.get(member.job, 0), member.pending_evaluations)
    rank = {job: k for k, job in enumerate(sorted(to_go, key=lambda job: to_go[job]))}
    return sorted(group, key=lambda place: (rank[place.member.job], -place.member.pending_evaluations, place.number))
