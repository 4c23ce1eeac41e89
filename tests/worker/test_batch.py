"""The running batch as a state machine: whatever comes, goes and fails, nobody is lost, doubled or forgotten."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from worker.batch import RunningBatch

MODELS = ("cats", "dogs", "fish")


@dataclass(eq=False)
class Image:
    """A member with a number of evaluations to go; `number` tells when it came."""

    number: int
    job: str
    model: str
    left: int

    @property
    def finished(self) -> bool:
        return self.left == 0

    @property
    def pending_evaluations(self) -> int:
        return self.left


class BatchMachine(RuleBasedStateMachine):
    """Jobs of several images and models come; turns, retirements and evictions happen in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.batch: RunningBatch[Image] = RunningBatch(1)
        self.came = 0
        self.jobs = 0
        self.here: list[Image] = []
        self.gone: set[Image] = set()
        self.turns_without: dict[str, int] = {}

    @initialize(lanes=st.integers(1, 5))
    def open(self, lanes: int) -> None:
        self.batch = RunningBatch(lanes)

    @rule(model=st.sampled_from(MODELS), n=st.integers(1, 4), steps=st.integers(1, 4))
    def a_job_comes(self, model: str, n: int, steps: int) -> None:
        self.jobs += 1
        newcomers = [Image(self.came + k, f"job-{self.jobs}", model, steps) for k in range(n)]
        self.came += n
        self.here += newcomers
        self.batch.admit(newcomers)

    @rule()
    def a_turn_passes(self) -> None:
        chosen = self.batch.choose()
        self._chosen_well(chosen)
        for member in chosen:
            member.left -= 1
        retired = self.batch.retire()
        assert sorted(m.number for m in retired) == sorted(m.number for m in chosen if m.finished)
        self._leave(retired)

    @rule(data=st.data())
    def a_job_is_evicted(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted({member.job for member in self.here}) or ["nobody"]))
        evicted = self.batch.evict(job)
        assert set(evicted) == {member for member in self.here if member.job == job}
        self._leave(evicted)

    def _chosen_well(self, chosen: list[Image]) -> None:
        assert bool(chosen) == bool(self.here)
        models = {member.model for member in chosen}
        assert len(models) <= 1
        assert chosen == [member for member in self.batch.running if member.model in models]
        for model in MODELS:
            waits = model not in models and any(member.model == model for member in self.batch.running)
            self.turns_without[model] = self.turns_without.get(model, 0) + 1 if waits else 0
            assert self.turns_without[model] < len(MODELS), f"{model} waits for its turn for ever"

    def _leave(self, members: list[Image]) -> None:
        self.here = [member for member in self.here if member not in members]
        self.gone |= set(members)

    @invariant()
    def never_more_run_than_there_are_lanes(self) -> None:
        assert len(self.batch.running) <= self.batch.lanes

    @invariant()
    def nobody_waits_while_a_lane_is_free(self) -> None:
        assert not self.batch.waiting or len(self.batch.running) == self.batch.lanes

    @invariant()
    def nobody_is_lost_or_doubled(self) -> None:
        present = [*self.batch.running, *self.batch.waiting]
        assert sorted(member.number for member in present) == sorted(member.number for member in self.here)
        assert len(self.batch) == len(self.here)

    @invariant()
    def everybody_is_served_in_the_order_of_arrival(self) -> None:
        numbers = [member.number for member in (*self.batch.running, *self.batch.waiting)]
        assert numbers == sorted(numbers)

    @invariant()
    def who_has_left_does_not_come_back(self) -> None:
        assert self.gone.isdisjoint([*self.batch.running, *self.batch.waiting])

    @invariant()
    def there_is_room_exactly_when_a_lane_has_no_taker(self) -> None:
        assert self.batch.has_room == (len(self.here) < self.batch.lanes)

    @invariant()
    def what_is_to_do_is_the_sum_over_all(self) -> None:
        assert self.batch.pending_evaluations == sum(member.left for member in self.here)

    def teardown(self) -> None:
        """Left to itself, it ends."""
        turns = sum(member.left for member in self.here)
        for _ in range(turns):
            self.a_turn_passes()
        assert not self.here
        assert self.batch.choose() == []


TestRunningBatch = BatchMachine.TestCase
TestRunningBatch.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
