"""Two turns at once: who is in one is in no other, and nothing else changes for anybody."""

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
MODELS = ("bird", "bat", "stone")  # of which the last does not fly


class FlyingMachine(RuleBasedStateMachine):
    """Turns begin while another is away, land in their order; jobs come and are evicted in between."""

    def __init__(self) -> None:
        super().__init__()
        self.batch: RunningBatch[Image] = RunningBatch(1)
        self.jobs = self.turns = 0
        self.here: list[Image] = []
        self.begun: deque[list[Image]] = deque()

    @initialize(max_batch=st.integers(4, 20), fewest=st.integers(2, 6))
    def open(self, max_batch: int, fewest: int) -> None:
        self.flies = {"bird": fewest, "bat": 3} if fewest <= max_batch else {"bat": 3}
        self.batch = RunningBatch(max_batch, {"bird": fewest, "bat": 3})

    @rule(model=st.sampled_from(MODELS), n=st.integers(1, 9), steps=st.integers(1, 8))
    def a_job_comes(self, model: str, n: int, steps: int) -> None:
        if self.batch.has_room(model):
            self.jobs += 1
            newcomers = [Image(0, f"job-{self.jobs}", model, steps) for _ in range(n)]
            self.here += newcomers
            self.batch.admit(newcomers)

    @precondition(lambda self: len(self.begun) < 2 and (not self.begun or self.batch.in_flight))
    @rule()
    def a_turn_begins(self) -> None:
        waiting = [member for member in self.here if member not in self.away]
        chosen = self.batch.choose()
        if not chosen:
            assert not waiting or self.away, "somebody goes where nobody is to be waited for"
            return
        assert set(chosen) <= set(waiting), "nobody is in two turns"
        (model,) = {member.model for member in chosen}
        here = [member for member in self.here if member.model == model]
        group = [member for member in waiting if member.model == model]
        assert [member for member in group if member in chosen] == chosen, "in the order of arrival"
        flying = model in self.flies and len(here) >= self.flies[model]
        assert flying or not self.away, "who does not fly is alone"
        most = -(-min(len(here), self.batch.max_batch) // 2) if flying else self.batch.max_batch
        assert len(chosen) == min(len(group), most)
        assert self.batch.turn_slots == (-(-self.batch.max_batch // 2) if flying else self.batch.max_batch)
        reserved = max(1, (-(-self.batch.max_batch // 2) if flying else self.batch.max_batch) // 4)
        for member in group:
            if member in chosen:
                member.passed, member.limit = 0, None
            else:
                member.is_passed_over(max(2, (len(here) - 1) // reserved))
        self.begun.append(chosen)

    @precondition(lambda self: self.begun)
    @rule()
    def a_turn_lands(self) -> None:
        members = self.begun.popleft()
        still = [member for member in members if member in self.here]
        assert self.batch.complete(members) == still
        for member in still:
            member.left -= 1
        self._leave(self.batch.retire())

    @rule(data=st.data())
    def a_job_is_evicted(self, data: st.DataObject) -> None:
        """Though it may be away."""
        job = data.draw(st.sampled_from(sorted({member.job for member in self.here}) or ["nobody"]))
        self._leave(self.batch.evict(job))

    @property
    def away(self) -> set[Image]:
        return {member for members in self.begun for member in members if member in self.here}

    @invariant()
    def nobody_is_passed_over_more_often_than_the_limit(self) -> None:
        for member in self.here:
            assert member.limit is None or member.passed <= member.limit

    @invariant()
    def nobody_is_lost_or_doubled(self) -> None:
        assert self.batch.members == self.here

    def _leave(self, members: list[Image]) -> None:
        self.here = [member for member in self.here if member not in members]

    def teardown(self) -> None:
        """Left to itself, it ends."""
        for _ in range(1 + sum(member.left for member in self.here)):
            while len(self.begun) < 2 and (not self.begun or self.batch.in_flight):
                before = len(self.begun)
                self.a_turn_begins()
                if len(self.begun) == before:
                    break
            if self.begun:
                self.a_turn_lands()
            self.nobody_is_passed_over_more_often_than_the_limit()
        assert not self.here


TestFlying = FlyingMachine.TestCase
TestFlying.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def flying(fake_model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model that is at two evaluations from four images on."""
    monkeypatch.setattr(fake_model, "min_pipelined_images", 4)
    return fake_model()


def test_two_turns_of_half_the_batch_are_on_their_way_at_any_time(flying: Any, trajectories_of: Trajectories) -> None:
    """Six images: three are worked on while the network is at the other three, in turns."""
    engine = Engine({"fake": flying}, 16)
    engine.batch.admit(trajectories_of(flying, label=1, n=6, steps=4))
    turns = [engine.step() for _ in range(8)]
    indices = [[item.trajectory.index for item in turn.advanced] for turn in turns]
    assert indices == [[0, 1, 2], [3, 4, 5]] * 4
    assert [turn.batch for turn in turns] == [6] * 7 + [3]
    assert {turn.slots for turn in turns} == {8}
    assert not len(engine.batch)


def test_few_images_are_in_one_evaluation_with_all_threads_at_it(
    flying: Any, trajectories_of: Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is begun for later has a thread for each image."""
    monkeypatch.setattr(flying, "begin", None)
    engine = Engine({"fake": flying}, 16)
    engine.batch.admit(trajectories_of(flying, label=1, n=3, steps=2))
    turns = [engine.step() for _ in range(2)]
    assert [(len(turn.advanced), turn.batch, turn.slots) for turn in turns] == [(3, 3, 16)] * 2


def test_a_newcomer_is_in_the_very_next_evaluation_that_begins(flying: Any, trajectories_of: Trajectories) -> None:
    engine = Engine({"fake": flying}, 16)
    engine.batch.admit(trajectories_of(flying, "a", label=1, n=4, steps=9))
    engine.step()
    engine.batch.admit(trajectories_of(flying, "b", label=2, steps=9))
    jobs = [{item.trajectory.job for item in engine.step().advanced} for _ in range(2)]
    assert jobs == [{"a"}, {"a", "b"}]


def test_a_job_that_is_canceled_while_the_network_is_at_it_gets_no_further(
    flying: Any, trajectories_of: Trajectories, turns_of: Turns
) -> None:
    """And those who were in the same evaluation go on as if they had been alone."""
    engine = Engine({"fake": flying}, 16)
    stays = trajectories_of(flying, "stays", label=1, n=2, steps=3)
    goes = trajectories_of(flying, "goes", label=2, n=4, steps=3)
    engine.batch.admit([goes[0], stays[0], goes[1], goes[2], stays[1], goes[3]])
    engine.step()
    engine.batch.evict("goes")
    before = [trajectory.row for trajectory in goes]
    jobs = {item.trajectory.job for turn in turns_of(engine) for item in turn.advanced}
    assert jobs == {"stays"}
    assert [trajectory.row for trajectory in goes] == before
    (alone,) = trajectories_of(flying, "stays", label=1, steps=3)
    engine = Engine({"fake": flying}, 1)
    engine.batch.admit([alone])
    assert len(list(turns_of(engine))) == 3
    assert torch.equal(stays[0].registers, alone.registers)


def test_nothing_begins_beside_an_evaluation_of_which_nobody_is_here_any_more(
    flying: Any, trajectories_of: Trajectories
) -> None:
    """A job that is to be alone is alone."""
    engine = Engine({"fake": flying}, 16)
    engine.batch.admit(trajectories_of(flying, "before", label=1, n=4, steps=9))
    engine.step()
    engine.batch.evict("before")
    engine.batch.admit(trajectories_of(flying, "apart", label=2, n=6, steps=9))
    turn = engine.step()
    assert (turn.advanced, turn.concurrent_rows) == ([], 0)
    assert {item.trajectory.job for item in engine.step().advanced} == {"apart"}


def test_a_model_that_does_not_fly_has_its_turns_beside_one_that_does(
    flying: Any, fake_model: Any, trajectories_of: Trajectories
) -> None:
    walking = fake_model("walking")
    walking.min_pipelined_images = None
    engine = Engine({"fake": flying, "walking": walking}, 16)
    engine.batch.admit(trajectories_of(flying, "a", n=8, steps=9))
    engine.batch.admit(trajectories_of(walking, "b", steps=9))
    turns = [engine.step() for _ in range(18)]
    walked = [turn for turn in turns if turn.advanced[0].trajectory.model == "walking"]
    assert len(walked) == 9
    assert {turn.concurrent_rows for turn in walked} == {0}


def test_an_evaluation_that_fails_on_its_way_fails_the_guilty_alone(
    fake_model: Any, trajectories_of: Trajectories, turns_of: Turns
) -> None:
    """When its outcome is asked for, while another has begun."""

    class Delicate(fake_model):  # type: ignore[misc]
        min_pipelined_images = 4

        def denoise(self, x: torch.Tensor, *level: Any) -> Estimate:
            if 2 in level[-1]["label"]:
                raise RuntimeError("class 2 is too much")
            known: Estimate = super().denoise(x, *level)
            return known

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
