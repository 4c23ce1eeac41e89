"""The running batch as a state machine: whatever comes, goes and fails, nobody is lost, doubled or forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from denoised.worker.engine.batch import RunningBatch

MODELS = ("cats", "dogs", "fish")


@dataclass(eq=False)
class Image:
    """A member with a number of evaluations to go, and what has happened to it.

    number: when it came; since: the turn it was last in, or the last before it came; passed: turns of its
    model since then, without it; limit: how many those may be.
    """

    number: int
    job: str
    model: str
    left: int
    since: int = 0
    begun: bool = False
    passed: int = 0
    limit: int | None = None

    @property
    def finished(self) -> bool:
        return self.left == 0

    @property
    def pending_evaluations(self) -> int:
        return self.left

    def moves(self, turn: int) -> None:
        self.left -= 1
        self.since, self.begun, self.passed, self.limit = turn, True, 0, None

    def is_passed_over(self, limit: int) -> None:
        self.passed += 1
        self.limit = limit if self.limit is None else self.limit


class BatchMachine(RuleBasedStateMachine):
    """Jobs of several images and models come; turns, retirements and evictions happen in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.batch: RunningBatch[Image] = RunningBatch(1)
        self.came = 0
        self.jobs = 0
        self.turns = 0
        self.here: list[Image] = []
        self.gone: set[Image] = set()
        self.turns_without: dict[str, int] = {}

    @initialize(max_batch=st.integers(1, 9))
    def open(self, max_batch: int) -> None:
        self.batch = RunningBatch(max_batch)

    @rule(model=st.sampled_from(MODELS), n=st.integers(1, 6), steps=st.integers(1, 8))
    def a_job_comes(self, model: str, n: int, steps: int) -> None:
        """As the worker has it: where there is room. A job may be larger than the room there is."""
        if not self.batch.has_room(model):
            return
        self.jobs += 1
        newcomers = [Image(self.came + k, f"job-{self.jobs}", model, steps, since=self.turns) for k in range(n)]
        self.came += n
        self.here += newcomers
        self.batch.admit(newcomers)

    @rule()
    def a_turn_passes(self) -> None:
        chosen = self.batch.choose()
        assert bool(chosen) == bool(self.here)
        if chosen:
            self.one_model_has_the_turn_and_models_take_turns(chosen)
            group = [member for member in self.here if member.model == chosen[0].model]
            self.as_many_go_as_there_are_lanes_and_nobody_twice(chosen, group)
            self.most_lanes_go_to_the_jobs_nearest_their_end(chosen, group)
            self.who_goes_is_of_a_shorter_job_or_has_waited_as_long(chosen, group)
            self.among_equals_the_older_goes(chosen, group)
            self._move(chosen, group)
        retired = self.batch.retire()
        assert retired == [member for member in chosen if member.finished], "the finished leave at once, nobody else"
        self._leave(retired)

    @rule(data=st.data())
    def a_job_is_evicted(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted({member.job for member in self.here}) or ["nobody"]))
        evicted = self.batch.evict(job)
        assert evicted == [member for member in self.here if member.job == job]
        self._leave(evicted)

    def one_model_has_the_turn_and_models_take_turns(self, chosen: list[Image]) -> None:
        models = {member.model for member in chosen}
        assert len(models) == 1
        for model in MODELS:
            waits = model not in models and any(member.model == model for member in self.here)
            self.turns_without[model] = self.turns_without.get(model, 0) + 1 if waits else 0
            assert self.turns_without[model] < len(MODELS), f"{model} waits for its turn for ever"

    def as_many_go_as_there_are_lanes_and_nobody_twice(self, chosen: list[Image], group: list[Image]) -> None:
        assert len(chosen) == min(len(group), self.batch.max_batch)
        assert [member for member in group if member in chosen] == chosen, "in the order of arrival"

    def most_lanes_go_to_the_jobs_nearest_their_end(self, chosen: list[Image], group: list[Image]) -> None:
        for left_out in set(group) - set(chosen):
            shorter = [member for member in chosen if self._to_go(member.job) <= self._to_go(left_out.job)]
            assert len(shorter) >= self.batch.max_batch - self.batch.reserved

    def who_goes_is_of_a_shorter_job_or_has_waited_as_long(self, chosen: list[Image], group: list[Image]) -> None:
        for left_out in set(group) - set(chosen):
            for member in chosen:
                assert self._to_go(member.job) <= self._to_go(left_out.job) or member.since <= left_out.since

    def among_equals_the_older_goes(self, chosen: list[Image], group: list[Image]) -> None:
        for left_out in set(group) - set(chosen):
            for member in chosen:
                assert self._standing(member) != self._standing(left_out) or member.number < left_out.number

    def _to_go(self, job: str) -> int:
        return max(member.left for member in self.here if member.job == job)

    def _standing(self, member: Image) -> tuple[int, int, int, bool]:
        return self._to_go(member.job), member.left, member.since, member.begun

    def _move(self, chosen: list[Image], group: list[Image]) -> None:
        self.turns += 1
        limit = (len(group) - 1) // self.batch.reserved
        for member in group:
            if member in chosen:
                member.moves(self.turns)
            else:
                member.is_passed_over(limit)

    def _leave(self, members: list[Image]) -> None:
        self.here = [member for member in self.here if member not in members]
        self.gone |= set(members)

    @invariant()
    def nobody_is_passed_over_more_often_than_the_limit(self) -> None:
        for member in self.here:
            assert member.limit is None or member.passed <= member.limit

    @invariant()
    def nobody_is_lost_or_doubled_and_the_order_is_that_of_arrival(self) -> None:
        assert self.batch.members == self.here
        assert len(self.batch) == len(self.here)

    @invariant()
    def who_has_left_does_not_come_back(self) -> None:
        assert self.gone.isdisjoint(self.batch.members)

    @invariant()
    def a_model_has_room_until_its_places_are_taken_whatever_the_others_do(self) -> None:
        for model in MODELS:
            count = sum(member.model == model for member in self.here)
            assert self.batch.has_room(model) == (count < max(4 * self.batch.max_batch, 64))
            assert self.batch.free_slots(model) == max(0, self.batch.max_batch - count)

    @invariant()
    def what_is_to_do_is_the_sum_over_all(self) -> None:
        assert self.batch.pending_evaluations == sum(member.left for member in self.here)
        by_job = {member.job: 0 for member in self.here}
        for member in self.here:
            by_job[member.job] += member.left
        assert self.batch.pending_by_job() == by_job

    def teardown(self) -> None:
        """Left to itself, it ends."""
        turns = sum(member.left for member in self.here)
        for _ in range(turns):
            self.a_turn_passes()
            self.nobody_is_passed_over_more_often_than_the_limit()
        assert not self.here
        assert self.batch.choose() == []


TestRunningBatch = BatchMachine.TestCase
TestRunningBatch.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def job(name: str, steps: int, n: int = 1) -> list[Image]:
    return [Image(0, name, "cats", steps) for _ in range(n)]


def pass_turn(batch: RunningBatch[Image]) -> list[Image]:
    """One turn; who was in it."""
    chosen = batch.choose()
    for member in chosen:
        member.left -= 1
    batch.retire()
    return chosen


def turns_until_done(batch: RunningBatch[Image], members: Iterable[Image]) -> int:
    turns = 0
    while not all(member.finished for member in members):
        pass_turn(batch)
        turns += 1
    return turns


def test_a_newcomer_is_in_the_very_next_turn_though_every_lane_is_taken_and_it_is_the_longest() -> None:
    batch: RunningBatch[Image] = RunningBatch(16)
    batch.admit(job("long", 1000, 16))
    for _ in range(100):
        pass_turn(batch)
    newcomers = job("longer", 1000, 4)
    batch.admit(newcomers)
    assert set(newcomers) <= set(pass_turn(batch))


@pytest.mark.parametrize("long_ones", [16, 17, 40, 63])
@pytest.mark.parametrize("max_batch", [4, 16])
def test_a_short_job_beside_long_ones_is_done_in_as_many_turns_as_it_has_steps(long_ones: int, max_batch: int) -> None:
    """All lanes taken by 1,000 steps each, and whoever waits for them."""
    batch: RunningBatch[Image] = RunningBatch(max_batch)
    batch.admit(job("long", 1000, long_ones))
    for _ in range(100):
        pass_turn(batch)
    short = job("short", 10)
    assert batch.has_room("cats")
    batch.admit(short)
    assert turns_until_done(batch, short) == 10


def test_a_short_job_of_as_many_images_as_there_are_lanes_starts_with_those_there_are() -> None:
    """160 evaluations, and twelve lanes a turn at the least."""
    batch: RunningBatch[Image] = RunningBatch(16)
    batch.admit(job("long", 1000, 40))
    for _ in range(100):
        pass_turn(batch)
    short = job("short", 10, n=16)
    batch.admit(short)
    assert any(member in short for member in pass_turn(batch))
    assert 1 + turns_until_done(batch, short) <= 14


def test_on_the_only_lane_a_short_job_and_a_long_one_alternate() -> None:
    batch: RunningBatch[Image] = RunningBatch(1)
    batch.admit(job("long", 1000))
    pass_turn(batch)
    short = job("short", 10)
    batch.admit(short)
    assert turns_until_done(batch, short) <= 20


def stream(batch: RunningBatch[Image], steps: int, a_turn: int) -> Iterator[list[Image]]:
    """Turns before each of which short jobs come, as far as there is room."""
    while True:
        for _ in range(a_turn):
            if batch.has_room("cats"):
                batch.admit(job("short", steps))
        yield pass_turn(batch)


def test_a_long_job_under_a_steady_stream_of_short_ones_has_its_share_of_the_turns() -> None:
    """More short ones than the lanes can serve: each place taken, and 1,000 steps still end, in 16 turns each."""
    batch: RunningBatch[Image] = RunningBatch(16)
    (long,) = job("long", 1000)
    batch.admit([long])
    turns = stream(batch, steps=10, a_turn=3)
    served = [long in next(turns) for _ in range(1600)]
    assert len(batch) >= batch.max_members - batch.max_batch
    waited = max(len(gap) for gap in "".join(".x"[moved] for moved in served).split("x"))
    assert waited <= (64 - 1) // 4
    assert 100 <= sum(served) < 1000


@pytest.mark.parametrize(("max_batch", "places"), [(1, 64), (16, 64), (32, 128)])
def test_a_batch_is_full_at_four_images_a_lane_and_not_below_64_for_each_model(max_batch: int, places: int) -> None:
    batch: RunningBatch[Image] = RunningBatch(max_batch)
    batch.admit(job("first", 5, places - 1))
    assert batch.has_room("cats")
    batch.admit(job("second", 5))
    assert not batch.has_room("cats")
    assert batch.has_room("dogs")
    batch.evict("second")
    assert batch.has_room("cats")


def test_of_equal_jobs_none_moves_on_while_another_waits_for_long() -> None:
    """Seventeen of 1,000 steps for sixteen lanes: ⌊16 / 4⌋ turns at the most."""
    batch: RunningBatch[Image] = RunningBatch(16)
    equals = job("equal", 1000, 17)
    batch.admit(equals)
    waited = dict.fromkeys(equals, 0)
    while len(batch):
        chosen = pass_turn(batch)
        for member in batch.members:
            waited[member] = 0 if member in chosen else waited[member] + 1
        assert max(waited.values()) <= 4
