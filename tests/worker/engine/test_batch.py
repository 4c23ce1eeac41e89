"""The running batch as a state machine: whatever arrives, finishes and fails, no member is lost, doubled or starved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from denoised.worker.engine.batch import RunningBatch
from denoised.worker.engine.fair_slots import ANONYMOUS, Caller

MODELS = ("cats", "dogs", "fish")


@dataclass(eq=False)
class Image:
    """A member with a number of evaluations left, and what has happened to it.

    Attributes:
        number: Its place in the order of arrival.
        since: The last turn that it took part in, or the last one before it arrived.
        passed: Turns of its model since then, without it.
        limit: How many of those are allowed.
    """

    number: int
    job: str
    model: str
    left: int
    since: int = 0
    started: bool = False
    passed: int = 0
    limit: int | None = None
    caller: Caller = ANONYMOUS
    rows: int = 1

    @property
    def batch_key(self) -> str:
        return self.model

    @property
    def finished(self) -> bool:
        return self.left == 0

    @property
    def pending_evaluations(self) -> int:
        return self.left

    def takes_part(self, turn: int) -> None:
        self.left -= 1
        self.since, self.started, self.passed, self.limit = turn, True, 0, None

    def is_passed_over(self, limit: int) -> None:
        self.passed += 1
        self.limit = limit if self.limit is None else self.limit


class BatchMachine(RuleBasedStateMachine):
    """Jobs of several images and models arrive; turns, retirements and evictions happen in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.batch: RunningBatch[Image] = RunningBatch(1)
        self.arrivals = 0
        self.jobs = 0
        self.turns = 0
        self.present: list[Image] = []
        self.former: set[Image] = set()
        self.turns_without: dict[str, int] = {}

    @initialize(max_batch=st.integers(1, 9))
    def open(self, max_batch: int) -> None:
        self.batch = RunningBatch(max_batch)

    @rule(model=st.sampled_from(MODELS), n=st.integers(1, 6), steps=st.integers(1, 8))
    def a_job_arrives(self, model: str, n: int, steps: int) -> None:
        """As in the worker, if there is room. A job may be larger than the room that is left."""
        if not self.batch.has_room(model):
            return
        self.jobs += 1
        new_members = [Image(self.arrivals + k, f"job-{self.jobs}", model, steps, since=self.turns) for k in range(n)]
        self.arrivals += n
        self.present += new_members
        self.batch.admit(new_members)

    @rule()
    def a_turn_passes(self) -> None:
        chosen = self.batch.choose()
        assert bool(chosen) == bool(self.present)
        if chosen:
            self.one_model_is_served_and_models_take_turns(chosen)
            group = [member for member in self.present if member.model == chosen[0].model]
            self.slots_are_filled_in_order_of_arrival(chosen, group)
            self.most_slots_go_to_the_jobs_nearest_their_end(chosen, group)
            self.each_chosen_member_is_of_a_shorter_job_or_has_waited_as_long(chosen, group)
            self.among_equals_the_older_is_chosen(chosen, group)
            self._record(chosen, group)
        retired = self.batch.retire()
        assert retired == [member for member in chosen if member.finished], "the finished leave at once, and no others"
        self._leave(retired)

    @rule(data=st.data())
    def a_job_is_evicted(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted({member.job for member in self.present}) or ["nobody"]))
        evicted = self.batch.evict(job)
        assert evicted == [member for member in self.present if member.job == job]
        self._leave(evicted)

    def one_model_is_served_and_models_take_turns(self, chosen: list[Image]) -> None:
        models = {member.model for member in chosen}
        assert len(models) == 1
        for model in MODELS:
            waits = model not in models and any(member.model == model for member in self.present)
            self.turns_without[model] = self.turns_without.get(model, 0) + 1 if waits else 0
            assert self.turns_without[model] < len(MODELS), f"{model} waits forever for its turn"

    def slots_are_filled_in_order_of_arrival(self, chosen: list[Image], group: list[Image]) -> None:
        assert len(chosen) == min(len(group), self.batch.max_batch)
        assert [member for member in group if member in chosen] == chosen, "in the order of arrival"

    def most_slots_go_to_the_jobs_nearest_their_end(self, chosen: list[Image], group: list[Image]) -> None:
        for left_out in set(group) - set(chosen):
            shorter = [member for member in chosen if self._remaining(member.job) <= self._remaining(left_out.job)]
            assert len(shorter) >= self.batch.max_batch - self.batch.reserved

    def each_chosen_member_is_of_a_shorter_job_or_has_waited_as_long(
        self, chosen: list[Image], group: list[Image]
    ) -> None:
        for left_out in set(group) - set(chosen):
            for member in chosen:
                assert self._remaining(member.job) <= self._remaining(left_out.job) or member.since <= left_out.since

    def among_equals_the_older_is_chosen(self, chosen: list[Image], group: list[Image]) -> None:
        for left_out in set(group) - set(chosen):
            for member in chosen:
                assert self._standing(member) != self._standing(left_out) or member.number < left_out.number

    def _remaining(self, job: str) -> int:
        return max(member.left for member in self.present if member.job == job)

    def _standing(self, member: Image) -> tuple[int, int, int, bool]:
        return self._remaining(member.job), member.left, member.since, member.started

    def _record(self, chosen: list[Image], group: list[Image]) -> None:
        self.turns += 1
        limit = (len(group) - 1) // self.batch.reserved
        for member in group:
            if member in chosen:
                member.takes_part(self.turns)
            else:
                member.is_passed_over(limit)

    def _leave(self, members: list[Image]) -> None:
        self.present = [member for member in self.present if member not in members]
        self.former |= set(members)

    @invariant()
    def no_member_is_passed_over_more_often_than_the_limit(self) -> None:
        for member in self.present:
            assert member.limit is None or member.passed <= member.limit

    @invariant()
    def no_member_is_lost_or_doubled_and_the_order_is_that_of_arrival(self) -> None:
        assert self.batch.members == self.present
        assert len(self.batch) == len(self.present)

    @invariant()
    def members_that_left_do_not_return(self) -> None:
        assert self.former.isdisjoint(self.batch.members)

    @invariant()
    def a_model_has_room_up_to_its_limit_whatever_the_others_do(self) -> None:
        for model in MODELS:
            count = sum(member.model == model for member in self.present)
            assert self.batch.has_room(model) == (count < max(4 * self.batch.max_batch, 64))
            assert self.batch.free_slots(model) == max(0, self.batch.max_batch - count)

    @invariant()
    def pending_evaluations_are_the_sum_over_all_members(self) -> None:
        assert self.batch.pending_evaluations == sum(member.left for member in self.present)
        by_job = {member.job: 0 for member in self.present}
        for member in self.present:
            by_job[member.job] += member.left
        assert self.batch.pending_by_job() == by_job

    def teardown(self) -> None:
        """Without new jobs, the batch empties."""
        turns = sum(member.left for member in self.present)
        for _ in range(turns):
            self.a_turn_passes()
            self.no_member_is_passed_over_more_often_than_the_limit()
        assert not self.present
        assert self.batch.choose() == []


TestRunningBatch = BatchMachine.TestCase
TestRunningBatch.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def job(name: str, steps: int, n: int = 1) -> list[Image]:
    return [Image(0, name, "cats", steps) for _ in range(n)]


def pass_turn(batch: RunningBatch[Image]) -> list[Image]:
    """Pass one turn; returns its members."""
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


def test_a_new_job_is_in_the_very_next_turn_though_all_slots_are_taken_and_it_is_the_longest() -> None:
    batch: RunningBatch[Image] = RunningBatch(16)
    batch.admit(job("long", 1000, 16))
    for _ in range(100):
        pass_turn(batch)
    new_members = job("longer", 1000, 4)
    batch.admit(new_members)
    assert set(new_members) <= set(pass_turn(batch))


@pytest.mark.parametrize("long_ones", [16, 17, 40, 63])
@pytest.mark.parametrize("max_batch", [4, 16])
def test_a_short_job_among_long_ones_takes_as_many_turns_as_it_has_steps(long_ones: int, max_batch: int) -> None:
    """All slots are taken by images of 1,000 steps, and more of them wait."""
    batch: RunningBatch[Image] = RunningBatch(max_batch)
    batch.admit(job("long", 1000, long_ones))
    for _ in range(100):
        pass_turn(batch)
    short = job("short", 10)
    assert batch.has_room("cats")
    batch.admit(short)
    assert turns_until_done(batch, short) == 10


def test_a_short_job_of_as_many_images_as_slots_starts_with_the_slots_that_it_gets() -> None:
    """160 evaluations, at no fewer than twelve slots per turn."""
    batch: RunningBatch[Image] = RunningBatch(16)
    batch.admit(job("long", 1000, 40))
    for _ in range(100):
        pass_turn(batch)
    short = job("short", 10, n=16)
    batch.admit(short)
    assert any(member in short for member in pass_turn(batch))
    assert 1 + turns_until_done(batch, short) <= 14


def test_a_short_job_and_a_long_one_alternate_in_a_single_slot() -> None:
    batch: RunningBatch[Image] = RunningBatch(1)
    batch.admit(job("long", 1000))
    pass_turn(batch)
    short = job("short", 10)
    batch.admit(short)
    assert turns_until_done(batch, short) <= 20


def stream(batch: RunningBatch[Image], steps: int, per_turn: int) -> Iterator[list[Image]]:
    """Turns. Before each, short jobs arrive as long as there is room."""
    while True:
        for _ in range(per_turn):
            if batch.has_room("cats"):
                batch.admit(job("short", steps))
        yield pass_turn(batch)


def test_a_long_job_in_a_steady_stream_of_short_ones_gets_its_fraction_of_the_turns() -> None:
    """More short jobs than slots can serve: the batch is full, yet the long job advances at least every 16th turn."""
    batch: RunningBatch[Image] = RunningBatch(16)
    (long,) = job("long", 1000)
    batch.admit([long])
    turns = stream(batch, steps=10, per_turn=3)
    served = [long in next(turns) for _ in range(1600)]
    assert len(batch) >= batch.max_members - batch.max_batch
    waited = max(len(gap) for gap in "".join(".x"[moved] for moved in served).split("x"))
    assert waited <= (64 - 1) // 4
    assert 100 <= sum(served) < 1000


@pytest.mark.parametrize(("max_batch", "limit"), [(1, 64), (16, 64), (32, 128)])
def test_a_batch_is_full_at_four_images_per_slot_and_not_below_64_for_each_model(max_batch: int, limit: int) -> None:
    batch: RunningBatch[Image] = RunningBatch(max_batch)
    batch.admit(job("first", 5, limit - 1))
    assert batch.has_room("cats")
    batch.admit(job("second", 5))
    assert not batch.has_room("cats")
    assert batch.has_room("dogs")
    batch.evict("second")
    assert batch.has_room("cats")


def test_among_equal_jobs_none_waits_long_while_the_others_advance() -> None:
    """Seventeen images of 1,000 steps for sixteen slots: at most ⌊16 / 4⌋ turns."""
    batch: RunningBatch[Image] = RunningBatch(16)
    equals = job("equal", 1000, 17)
    batch.admit(equals)
    waited = dict.fromkeys(equals, 0)
    while len(batch):
        chosen = pass_turn(batch)
        for member in batch.members:
            waited[member] = 0 if member in chosen else waited[member] + 1
        assert max(waited.values()) <= 4
