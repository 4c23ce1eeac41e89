"""Callers whose jobs cannot share a turn: they share the worker's time. The clock is simulated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

from denoised.worker.engine.batch import RunningBatch
from denoised.worker.engine.fair_slots import ANONYMOUS, Caller

SECONDS = {"digits": 0.002, "shoes": 0.002, "hats": 0.002, "large": 1.0}  # of a turn with one row
SLOTS = 16


@dataclass(eq=False)
class Image:
    job: str
    model: str
    pending_evaluations: int
    caller: Caller = ANONYMOUS
    rows: int = 1
    size: int = 8

    @property
    def batch_key(self) -> tuple[str, int]:
        return self.model, self.size

    @property
    def finished(self) -> bool:
        return self.pending_evaluations <= 0


@dataclass
class Worker:
    """A batch whose turns take `SECONDS` and half as much for each further row.

    Attributes:
        spent: Seconds of the turns of each model.
    """

    now: float = 0.0
    spent: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.batch: RunningBatch[Image] = RunningBatch(SLOTS, clock=lambda: self.now)

    def admit(
        self, model: str, owner: str = "", steps: int = 20, n: int = 1, weight: float = 1.0, size: int = 8
    ) -> str:
        job = f"{model} {owner} {size}"
        self.batch.admit([Image(job, model, steps, Caller(owner, weight), size=size) for _ in range(n)])
        return job

    def turn(self) -> list[Image]:
        members = self.batch.choose()
        seconds = SECONDS[members[0].model] * (1 + len(members)) / 2
        self.now += seconds
        self.spent[members[0].model] += seconds
        for member in members:
            member.pending_evaluations -= 1
        self.batch.complete(members)
        self.batch.retire()
        return members

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.turn()

    def seconds_until_done(self, job: str) -> float:
        began = self.now
        while any(member.job == job for member in self.batch.members):
            self.turn()
        return self.now - began


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.mark.parametrize("flooded", [["shoes"], ["shoes", "hats", "large"]])
def test_a_flood_of_other_models_delays_a_single_job_by_its_share_of_the_time(
    worker: Worker, flooded: list[str]
) -> None:
    """With turns in rotation, each of its 20 turns would follow one of each other model."""
    for model in flooded:
        worker.admit(model, "crowd", steps=10_000, n=64)
    worker.run(30.0)
    alone = 20 * SECONDS["digits"]
    longest = max(SECONDS[model] for model in flooded) * (1 + SLOTS) / 2
    single = worker.admit("digits", "single")
    assert worker.seconds_until_done(single) <= 2 * alone + longest, "half of the time, and a turn that has begun"
    assert worker.spent["digits"] == pytest.approx(alone)


def test_a_turn_of_images_that_are_finished_when_they_come_is_free() -> None:
    """Strength 0: no row of the network, so no caller pays."""
    batch: RunningBatch[Image] = RunningBatch(SLOTS, clock=lambda: 0.0)
    done = Image("done", "digits", 0, rows=0)
    batch.admit([done])
    assert batch.choose() == [done]


def test_a_key_has_no_more_time_for_jobs_of_several_sizes(worker: Worker) -> None:
    """With turns in rotation, the sizes would have six sevenths."""
    for size in range(8, 14):
        worker.admit("shoes", "sizes", steps=100_000, n=SLOTS, size=size)
    worker.admit("digits", "other", steps=100_000, n=SLOTS)
    worker.run(20.0)
    assert worker.spent["digits"] / worker.spent.total() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_time_is_divided_by_weight_and_not_by_turns(worker: Worker, weight: float) -> None:
    worker.admit("large", "ann", steps=10_000, n=SLOTS)
    worker.admit("digits", "bob", steps=10_000_000, n=SLOTS, weight=weight)
    worker.run(2000.0)
    assert worker.spent["digits"] / worker.spent["large"] == pytest.approx(weight, rel=0.15)


def test_a_light_key_waits_in_proportion_to_the_weights_and_no_longer(worker: Worker) -> None:
    worker.admit("digits", "heavy", steps=100_000, n=1, weight=100.0)
    worker.admit("shoes", "light", steps=100_000)
    served = ["shoes" in {member.model for member in worker.turn()} for _ in range(1000)]
    assert max(len(gap) for gap in "".join(".x"[each] for each in served).split("x")) <= 2 * 100 + 1


@pytest.mark.parametrize("owner", ["", "ann"])
def test_the_models_of_one_caller_take_turns(worker: Worker, owner: str) -> None:
    for model in ("digits", "shoes", "large"):
        worker.admit(model, owner, steps=100)
    turns = [worker.turn()[0].model for _ in range(30)]
    assert turns == ["digits", "large", "shoes"] * 10


def test_idle_time_is_nobodys(worker: Worker) -> None:
    worker.admit("digits", "ann", steps=1)
    worker.admit("shoes", "bob", steps=1000)
    worker.turn()
    worker.run(0.1)
    worker.batch.evict("shoes bob 8")
    assert worker.batch.choose() == []
    worker.now += 1000.0
    worker.admit("digits", "ann", steps=1000)
    worker.admit("shoes", "bob", steps=1000)
    worker.spent.clear()
    worker.run(0.4)
    assert worker.spent["digits"] == pytest.approx(worker.spent["shoes"], rel=0.2)
