"""The running batch: admission, choice of the next turn's members, eviction. No arithmetic; imports no torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from denoised.worker.engine.batch_slots import BatchSlots
from denoised.worker.engine.fair_slots import Caller, FairSlots
from denoised.worker.engine.fair_turns import FairTurns

MEMBERS_PER_SLOT = 4  # of one model
MIN_MEMBER_LIMIT = 64
CALLERS_AT_LIMIT = 2  # so many callers at their limit fill the batch
SLOTS_PER_RESERVED = 4  # one slot in so many is reserved for the members that have waited longest


class Member(Protocol):
    """What the batch needs to know about a trajectory.

    Attributes:
        rows: That its next evaluation takes.
    """

    job: str
    model: str
    caller: Caller

    @property
    def batch_key(self) -> Hashable: ...

    @property
    def finished(self) -> bool: ...

    @property
    def pending_evaluations(self) -> int: ...

    @property
    def rows(self) -> int: ...


T = TypeVar("T", bound=Member)


@dataclass(eq=False)
class BatchEntry(Generic[T]):
    """A member, and what the batch knows about it.

    Attributes:
        member: The trajectory.
        arrival: How many members arrived before it.
        last_turn: Number of the last turn that it took part in; before its first one, of the last turn chosen
            before it arrived.
        started: Whether it has taken part in a turn.
        in_flight: Whether it takes part in a pipelined turn that is not complete yet.
    """

    member: T
    arrival: int
    last_turn: int
    started: bool = False
    in_flight: bool = False

    @property
    def waiting_order(self) -> tuple[int, bool, int]:
        """Sorts entries by how long they have waited, the longest first."""
        return self.last_turn, self.started, self.arrival


class RunningBatch(Generic[T]):
    """Chooses the members of each turn: at most `slots` members that fit into one evaluation.

    Members with equal `batch_key` fit: those of one model whose tensors have equal shapes. Each turn serves one key, of
    the caller that has had least time (`FairTurns`). Below, "the members of a model" are those of one key.

    If a model has more members than slots, most slots are divided among the callers (`FairSlots`). Those of a caller go
    to its jobs of the highest priority, and among these to the ones that are nearest to their end, so that a short job
    never waits for a long one. `reserved` slots, a quarter, go to the members that have waited longest, so that
    none starves: while a member waits, at most ⌊(m − 1) / reserved⌋ turns of its model pass, where m is the number of
    the model's members when it began to wait. Each of those turns serves `reserved` members that had waited longer,
    and a member that arrives later has waited less.

    If a model is pipelined and has enough members, two turns of it are in flight at once, each of half the slots. A
    member in flight takes part in no other turn until `complete`. If there are slots for all members, each turn takes
    the half that has waited longest, and no member is passed over twice.

    Attributes:
        slots: Images in one evaluation, by model and key.
        max_batch: The slots of a model for which nothing else is known.
        reserved: Of these slots, those for the members that have waited longest.
        max_members: Members of such a model beyond which no job of their caller is admitted. Twice as many, of all
            callers, bound m, and memory.
    """

    def __init__(
        self,
        max_batch: int,
        min_pipelined: Mapping[str, int] | None = None,
        slots: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """min_pipelined: the fewest members for which a model is pipelined; models not in it never are.

        slots: images in one evaluation, of models for which that is not `max_batch`.
        """
        self.slots = BatchSlots(max_batch, slots)
        self.max_batch = max_batch
        self.reserved = reserved_slots(max_batch)
        self.max_members = member_limit(max_batch)
        fewest_of = (min_pipelined or {}).items()
        self._min_pipelined = {name: fewest for name, fewest in fewest_of if fewest <= self.slots.of_model(name)}
        self._turn_slots = max_batch
        self._entries: list[BatchEntry[T]] = []
        self._in_flight = 0  # entries
        self._arrivals = 0
        self._turn = 0
        self._fair_slots = FairSlots()
        self._fair_turns = FairTurns()
        self._clock = clock

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def members(self) -> list[T]:
        """All members, oldest first."""
        return [entry.member for entry in self._entries]

    def free_slots(self, model: str) -> int:
        """How many more members of a model would take part in each of its turns."""
        return max(0, self.slots.of_model(model) - self._count(model))

    def has_room(self, model: str, owner: str = "") -> bool:
        """Whether one more job of a model and a caller may be admitted."""
        return self.has_room_for_others(model) and owner not in self.owners_at_limit(model)

    def has_room_for_others(self, model: str) -> bool:
        """Whether one more job of a model may be admitted, of a caller that is not at its limit."""
        return self._count(model) < CALLERS_AT_LIMIT * member_limit(self.slots.of_model(model))

    def owners_at_limit(self, model: str) -> frozenset[str]:
        """The callers that have as many members of a model as a caller may have."""
        limit = member_limit(self.slots.of_model(model))
        counts = Counter(entry.member.caller.owner for entry in self._entries if entry.member.model == model)
        return frozenset(owner for owner, count in counts.items() if count >= limit)

    @property
    def pending_evaluations(self) -> int:
        """Network evaluations until all members are finished."""
        return self.pending_by_job().total()

    def pending_by_job(self) -> Counter[str]:
        """Network evaluations until each job is finished."""
        pending: Counter[str] = Counter()
        for member in self.members:
            pending[member.job] += member.pending_evaluations
        return pending

    def replace_model(self, model: str, slots: int, min_pipelined: int | None) -> None:
        """A model without members is another one from now on. slots, min_pipelined: see `__init__`; None is never."""
        self.slots.replace(model, slots)
        self._min_pipelined.pop(model, None)
        if min_pipelined is not None and min_pipelined <= slots:
            self._min_pipelined[model] = min_pipelined

    def admit(self, members: Iterable[T]) -> None:
        """Add all images of a job; they can take part in the next turn."""
        for member in members:
            self._entries.append(BatchEntry(member, self._arrivals, self._turn))
            self._arrivals += 1

    def choose(self) -> list[T]:
        """Choose the members of the next turn, oldest first; [] if there are none, or a turn has to complete first."""
        waiting = [entry for entry in self._entries if not entry.in_flight]
        if not waiting:
            if not self.in_flight:
                self._fair_turns.begin((), self._clock(), self.members)
            return []
        key = self._fair_turns.choose_key([entry.member for entry in waiting])
        group = [entry for entry in waiting if entry.member.batch_key == key]
        pipelined = self._is_pipelined(group[0].member)
        if self.in_flight and not pipelined:
            return []
        self._turn += 1
        self._turn_slots = self.slots.of_key(group[0].member.model, key)
        chosen = self._half(group) if pipelined else self._choose_fairly(group, self._turn_slots)
        members = [entry.member for entry in chosen]
        self._fair_slots.count(members, {entry.member.caller.owner for entry in self._entries})
        self._fair_turns.begin(members, self._clock(), self.members)
        for entry in chosen:
            entry.last_turn, entry.started, entry.in_flight = self._turn, True, pipelined
        self._in_flight += len(chosen) * pipelined
        return members

    @property
    def in_flight(self) -> bool:
        """Whether a pipelined turn has been chosen and is not complete."""
        return self._in_flight > 0

    @property
    def turn_slots(self) -> int:
        """The slots of the turn that was chosen last."""
        return -(-self._turn_slots // 2) if self.in_flight else self._turn_slots

    def complete(self, members: Iterable[T]) -> list[T]:
        """End a turn of these members. Returns those of them that have not been evicted since."""
        turn = set(map(id, members))
        completed = [entry for entry in self._entries if id(entry.member) in turn]
        for entry in completed:
            self._in_flight -= entry.in_flight
            entry.in_flight = False
        return [entry.member for entry in completed]

    def retire(self) -> list[T]:
        """Remove and return the finished members."""
        finished = [member for member in self.members if member.finished]
        if finished:
            self._keep([entry for entry in self._entries if not entry.member.finished])
        return finished

    def evict(self, job: str) -> list[T]:
        """Remove and return all members of a job, finished or not."""
        evicted = [member for member in self.members if member.job == job]
        self._keep([entry for entry in self._entries if entry.member.job != job])
        return evicted

    def _keep(self, entries: list[BatchEntry[T]]) -> None:
        self._entries = entries
        self._in_flight = sum(entry.in_flight for entry in entries)

    def _count(self, model: str) -> int:
        return sum(entry.member.model == model for entry in self._entries)

    def _count_key(self, key: Hashable) -> int:
        return sum(entry.member.batch_key == key for entry in self._entries)

    def _is_pipelined(self, member: T) -> bool:
        """Whether a member's model is pipelined, and there are enough members that fit, for two turns at once."""
        fewest = self._min_pipelined.get(member.model)
        return fewest is not None and self._count_key(member.batch_key) >= fewest

    def _half(self, group: list[BatchEntry[T]]) -> list[BatchEntry[T]]:
        """Choose the members of one of two pipelined turns from a model's waiting members."""
        count = self._count_key(group[0].member.batch_key)
        if count > self._turn_slots:
            return self._choose_fairly(group, -(-self._turn_slots // 2))
        by_waiting = sorted(group, key=lambda entry: entry.waiting_order)
        return sorted(by_waiting[: -(-count // 2)], key=lambda entry: entry.arrival)

    def _choose_fairly(self, group: list[BatchEntry[T]], slots: int) -> list[BatchEntry[T]]:
        """Choose the members of a turn. `group` and the result are in order of arrival."""
        if len(group) <= slots:
            return group
        reserved = reserved_slots(slots)
        entries = {id(entry.member): entry for entry in group}
        by_length = [entry.member for entry in _by_remaining_length(group)]
        chosen = [entries.pop(id(member)) for member in self._fair_slots.choose(by_length, slots - reserved)]
        others = sorted(entries.values(), key=lambda entry: entry.waiting_order)
        return sorted(chosen + others[:reserved], key=lambda entry: entry.arrival)


def reserved_slots(slots: int) -> int:
    """Those of a turn's slots that go to the members that have waited longest."""
    return max(1, slots // SLOTS_PER_RESERVED)


def member_limit(slots: int) -> int:
    """Members of one model and caller beyond which no job of them is admitted."""
    return max(MEMBERS_PER_SLOT * slots, MIN_MEMBER_LIMIT)


def _by_remaining_length(group: list[BatchEntry[T]]) -> list[BatchEntry[T]]:
    """Urgent jobs first, then the job nearest to its end, the older of two; within a job, the image farthest from its
    end first."""
    remaining: dict[str, int] = {}  # evaluations until the job's slowest image is finished
    for entry in group:
        member = entry.member
        remaining[member.job] = max(remaining.get(member.job, 0), member.pending_evaluations)
    urgency = {entry.member.job: entry.member.caller.urgency for entry in group}
    rank = {job: k for k, job in enumerate(sorted(remaining, key=lambda job: (urgency[job], remaining[job])))}
    return sorted(group, key=lambda entry: (rank[entry.member.job], -entry.member.pending_evaluations, entry.arrival))
