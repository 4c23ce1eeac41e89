"""Two turns in flight: no member is in both, and every image stays the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from denoised.model.diffusion.predictions import Estimate
from denoised.worker.engine.batch import RunningBatch
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import Trajectory
from denoised.worker.engine.turn import Turn
from tests.worker.engine.test_batch import Image

Trajectories = Callable[..., list[Trajectory]]
Turns = Callable[[Engine], Iterator[Turn]]
MODELS = ("first", "second", "unpipelined")


class PipelinedMachine(RuleBasedStateMachine):
    """Turns begin while another is in flight and complete in order; jobs arrive and are evicted in between."""

    def __init__(self) -> None:
        super().__init__()
        self.batch: RunningBatch[Image] = RunningBatch(1)
        self.jobs = self.turns = 0
        self.present: list[Image] = []
        self.in_flight: deque[list[Image]] = deque()

    @initialize(max_batch=st.integers(4, 20), fewest=st.integers(2, 6))
    def open(self, max_batch: int, fewest: int) -> None:
        self.min_pipelined = {"first": fewest, "second": 3} if fewest <= max_batch else {"second": 3}
        self.batch = RunningBatch(max_batch, {"first": fewest, "second": 3})

    @rule(model=st.sampled_from(MODELS), n=st.integers(1, 9), steps=st.integers(1, 8))
    def a_job_arrives(self, model: str, n: int, steps: int) -> None:
        if self.batch.has_room(model):
            self.jobs += 1
            new_members = [Image(0, f"job-{self.jobs}", model, steps) for _ in range(n)]
            self.present += new_members
            self.batch.admit(new_members)

    @precondition(lambda self: len(self.in_flight) < 2 and (not self.in_flight or self.batch.in_flight))
    @rule()
    def a_turn_begins(self) -> None:
        waiting = [member for member in self.present if member not in self.members_in_flight]
        chosen = self.batch.choose()
        if not chosen:
            assert not waiting or self.members_in_flight, "a turn is empty although no other is in flight"
            return
        assert set(chosen) <= set(waiting), "no member is in two turns"
        (model,) = {member.model for member in chosen}
        present = [member for member in self.present if member.model == model]
        group = [member for member in waiting if member.model == model]
        assert [member for member in group if member in chosen] == chosen, "in the order of arrival"
        pipelined = model in self.min_pipelined and len(present) >= self.min_pipelined[model]
        assert pipelined or not self.members_in_flight, "a turn of an unpipelined model is alone"
        most = -(-min(len(present), self.batch.max_batch) // 2) if pipelined else self.batch.max_batch
        assert len(chosen) == min(len(group), most)
        assert self.batch.turn_slots == (-(-self.batch.max_batch // 2) if pipelined else self.batch.max_batch)
        reserved = max(1, (-(-self.batch.max_batch // 2) if pipelined else self.batch.max_batch) // 4)
        for member in group:
            if member in chosen:
                member.passed, member.limit = 0, None
            else:
                member.is_passed_over(max(2, (len(present) - 1) // reserved))
        self.in_flight.append(chosen)

    @precondition(lambda self: self.in_flight)
    @rule()
    def a_turn_completes(self) -> None:
        members = self.in_flight.popleft()
        still = [member for member in members if member in self.present]
        assert self.batch.complete(members) == still
        for member in still:
            member.left -= 1
        self._leave(self.batch.retire())

    @rule(data=st.data())
    def a_job_is_evicted(self, data: st.DataObject) -> None:
        """Even if it is in flight."""
        job = data.draw(st.sampled_from(sorted({member.job for member in self.present}) or ["nobody"]))
        self._leave(self.batch.evict(job))

    @property
    def members_in_flight(self) -> set[Image]:
        return {member for members in self.in_flight for member in members if member in self.present}

    @invariant()
    def no_member_is_passed_over_more_often_than_the_limit(self) -> None:
        for member in self.present:
            assert member.limit is None or member.passed <= member.limit

    @invariant()
    def no_member_is_lost_or_doubled(self) -> None:
        assert self.batch.members == self.present

    def _leave(self, members: list[Image]) -> None:
        self.present = [member for member in self.present if member not in members]

    def teardown(self) -> None:
        """Without new jobs, the batch empties."""
        for _ in range(1 + sum(member.left for member in self.present)):
            while len(self.in_flight) < 2 and (not self.in_flight or self.batch.in_flight):
                before = len(self.in_flight)
                self.a_turn_begins()
                if len(self.in_flight) == before:
                    break
            if self.in_flight:
                self.a_turn_completes()
            self.no_member_is_passed_over_more_often_than_the_limit()
        assert not self.present


TestPipelined = PipelinedMachine.TestCase
TestPipelined.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def pipelined_model(fake_model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model that is pipelined for four images or more."""
    monkeypatch.setattr(fake_model, "min_pipelined_images", 4)
    return fake_model()


def test_two_turns_of_half_the_batch_are_always_in_flight(pipelined_model: Any, trajectories_of: Trajectories) -> None:
    """Six images: three are advanced while the network evaluates the other three, in turns."""
    engine = Engine({"fake": pipelined_model}, 16)
    engine.batch.admit(trajectories_of(pipelined_model, label=1, n=6, steps=4))
    turns = [engine.step() for _ in range(8)]
    indices = [[item.trajectory.index for item in turn.advanced] for turn in turns]
    assert indices == [[0, 1, 2], [3, 4, 5]] * 4
    assert [turn.batch for turn in turns] == [6] * 7 + [3]
    assert {turn.slots for turn in turns} == {8}
    assert not len(engine.batch)


def test_few_images_are_in_one_evaluation_on_all_threads(
    pipelined_model: Any, trajectories_of: Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipelined evaluation has only one thread per image."""
    monkeypatch.setattr(pipelined_model, "begin", None)
    engine = Engine({"fake": pipelined_model}, 16)
    engine.batch.admit(trajectories_of(pipelined_model, label=1, n=3, steps=2))
    turns = [engine.step() for _ in range(2)]
    assert [(len(turn.advanced), turn.batch, turn.slots) for turn in turns] == [(3, 3, 16)] * 2


def test_a_new_job_is_in_the_very_next_evaluation_that_begins(
    pipelined_model: Any, trajectories_of: Trajectories
) -> None:
    engine = Engine({"fake": pipelined_model}, 16)
    engine.batch.admit(trajectories_of(pipelined_model, "a", label=1, n=4, steps=9))
    engine.step()
    engine.batch.admit(trajectories_of(pipelined_model, "b", label=2, steps=9))
    jobs = [{item.trajectory.job for item in engine.step().advanced} for _ in range(2)]
    assert jobs == [{"a"}, {"a", "b"}]


def test_a_job_that_is_canceled_in_flight_does_not_advance(
    pipelined_model: Any, trajectories_of: Trajectories, turns_of: Turns
) -> None:
    """And the other members of the evaluation go on as if they had been alone."""
    engine = Engine({"fake": pipelined_model}, 16)
    stays = trajectories_of(pipelined_model, "stays", label=1, n=2, steps=3)
    goes = trajectories_of(pipelined_model, "goes", label=2, n=4, steps=3)
    engine.batch.admit([goes[0], stays[0], goes[1], goes[2], stays[1], goes[3]])
    engine.step()
    engine.batch.evict("goes")
    before = [trajectory.row for trajectory in goes]
    jobs = {item.trajectory.job for turn in turns_of(engine) for item in turn.advanced}
    assert jobs == {"stays"}
    assert [trajectory.row for trajectory in goes] == before
    (alone,) = trajectories_of(pipelined_model, "stays", label=1, steps=3)
    engine = Engine({"fake": pipelined_model}, 1)
    engine.batch.admit([alone])
    assert len(list(turns_of(engine))) == 3
    assert torch.equal(stays[0].registers, alone.registers)


def test_no_turn_begins_while_one_is_in_flight_whose_members_are_all_evicted(
    pipelined_model: Any, trajectories_of: Trajectories
) -> None:
    """A job that must run alone does so."""
    engine = Engine({"fake": pipelined_model}, 16)
    engine.batch.admit(trajectories_of(pipelined_model, "before", label=1, n=4, steps=9))
    engine.step()
    engine.batch.evict("before")
    engine.batch.admit(trajectories_of(pipelined_model, "apart", label=2, n=6, steps=9))
    turn = engine.step()
    assert (turn.advanced, turn.concurrent_rows) == ([], 0)
    assert {item.trajectory.job for item in engine.step().advanced} == {"apart"}


def test_turns_of_an_unpipelined_model_are_never_concurrent_with_those_of_a_pipelined_one(
    pipelined_model: Any, fake_model: Any, trajectories_of: Trajectories
) -> None:
    unpipelined = fake_model("unpipelined")
    unpipelined.min_pipelined_images = None
    engine = Engine({"fake": pipelined_model, "unpipelined": unpipelined}, 16)
    engine.batch.admit(trajectories_of(pipelined_model, "a", n=8, steps=9))
    engine.batch.admit(trajectories_of(unpipelined, "b", steps=9))
    turns = [engine.step() for _ in range(18)]
    alone_turns = [turn for turn in turns if turn.advanced[0].trajectory.model == "unpipelined"]
    assert len(alone_turns) == 9
    assert {turn.concurrent_rows for turn in alone_turns} == {0}


def test_an_evaluation_that_fails_in_flight_fails_only_the_image_that_causes_it(
    fake_model: Any, trajectories_of: Trajectories, turns_of: Turns
) -> None:
    """It raises when its result is waited for, while another has begun."""

    class Delicate(fake_model):  # type: ignore[misc]
        min_pipelined_images = 4

        def denoise(self, x: torch.Tensor, *level: Any) -> Estimate:
            if 2 in level[-1]["label"]:
                raise RuntimeError("class 2 is too much")
            estimate: Estimate = super().denoise(x, *level)
            return estimate

    model = Delicate()
    engine = Engine({"fake": model}, 16)
    engine.batch.admit(trajectories_of(model, "good", label=1, n=5, steps=2))
    engine.batch.admit(trajectories_of(model, "bad", label=2, n=1, steps=2))
    turns = list(turns_of(engine))
    failed = [(trajectory.job, error.code) for turn in turns for trajectory, error in turn.failed]
    assert failed == [("bad", "evaluation_failed")]
    assert [turn.halved for turn in turns][:2] == [False, True]
    done = [item.trajectory for turn in turns for item in turn.advanced if item.result is not None]
    assert sorted(each.index for each in done) == [0, 1, 2, 3, 4]
