"""Estimates compared with the real running batch, simulated turn by turn."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoised.app.admission.queue.estimate import RemainingWork, completion_times
from denoised.app.admission.queue.turn_times import WorkerPool, turn_seconds, turn_times
from denoised.jobs.worker_report import WorkerReport
from denoised.worker.engine.batch import RunningBatch
from denoised.worker.engine.fair_slots import ANONYMOUS, Caller

TURN_TIMES = [(1.0, 0.01), (16.0, 0.085)]


@dataclass
class Runner:
    """One image in the running batch."""

    job: str
    pending_evaluations: int
    model: str = "m"
    caller: Caller = ANONYMOUS
    rows: int = 1

    @property
    def batch_key(self) -> str:
        return self.model

    @property
    def finished(self) -> bool:
        return self.pending_evaluations <= 0


def pool(slots: int = 16, times: list[tuple[float, float]] | None = None) -> WorkerPool:
    batch: RunningBatch[Runner] = RunningBatch(slots)
    return WorkerPool(slots, batch.reserved, batch.max_members, (times or TURN_TIMES,))


def simulate(jobs: list[RemainingWork], slots: int = 16) -> dict[str, float]:
    """When each job is done in the worker's own `RunningBatch`; all wait at the start."""
    batch: RunningBatch[Runner] = RunningBatch(slots)
    queue, now, ends = list(jobs), 0.0, {}
    while queue or len(batch):
        while queue and batch.free_slots("m"):
            work = queue.pop(0)
            batch.admit([Runner(work.job, int(work.turns)) for _ in range(work.images)])
        if queue and batch.has_room("m"):
            work = queue.pop(0)
            batch.admit([Runner(work.job, int(work.turns)) for _ in range(work.images)])
        group = batch.choose()
        for runner in group:
            runner.pending_evaluations -= 1
        now += turn_seconds(TURN_TIMES, len(group))
        over = {runner.job for runner in batch.retire()} - {runner.job for runner in batch.members}
        ends |= dict.fromkeys(over, now)
    return ends


def jobs(*sizes: tuple[int, int]) -> list[RemainingWork]:
    return [RemainingWork(str(k), images, turns, 1) for k, (images, turns) in enumerate(sizes)]


def test_a_single_job_takes_its_own_turns() -> None:
    assert completion_times([], jobs((1, 20)), pool()) == {"0": pytest.approx(20 * 0.01)}
    assert completion_times([], jobs((16, 20)), pool()) == {"0": pytest.approx(20 * 0.085)}


def test_jobs_that_fit_together_do_not_wait_for_each_other() -> None:
    ends = completion_times([], jobs((1, 10), (1, 1000)), pool(times=[(1.0, 0.1), (64.0, 0.1)]))
    assert ends == {"0": pytest.approx(1.0), "1": pytest.approx(100.0)}


def test_guidance_counts_twice() -> None:
    times = [(1.0, 1.0), (64.0, 64.0)]
    assert completion_times([RemainingWork("a", 1, 10, 2)], [], pool(times=times)) == {"a": pytest.approx(20.0)}


MIXES = [
    [(16, 1000), (1, 10), (4, 20)],
    [(1, 20)] * 64,
    [(1, 20)] * 120,
    [(1, 1000)] * 16 + [(16, 10)],
    [(1, 1000)] * 48 + [(16, 10)] + [(1, 50)] * 20,
    [(k % 4 + 1, 5 + 37 * k % 60) for k in range(60)],
    [(16, 100)] * 12,
    [(2, 10), (2, 500)] * 30,
]


@pytest.mark.parametrize("sizes", MIXES, ids=[str(mix[:2])[1:-1] + f" x{len(mix)}" for mix in MIXES])
def test_the_estimate_follows_the_order_of_the_running_batch(sizes: list[tuple[int, int]]) -> None:
    """Dividing the work ahead by the speed has median errors of 7 to 4700 % here."""
    found, true = completion_times([], jobs(*sizes), pool()), simulate(jobs(*sizes))
    assert found.keys() == true.keys()
    errors = [abs(found[job] - true[job]) / true[job] for job in true]
    assert statistics.median(errors) < 0.12
    assert max(errors) < 0.8


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 16), st.integers(1, 100)), min_size=1, max_size=40))
def test_the_last_job_ends_when_all_work_is_done(sizes: list[tuple[int, int]]) -> None:
    found, true = completion_times([], jobs(*sizes), pool()), simulate(jobs(*sizes))
    assert found.keys() == true.keys()
    assert max(found.values()) == pytest.approx(max(true.values()), rel=0.3)


def test_more_workers_share_the_work() -> None:
    one, two = pool(), WorkerPool(32, 8, 128, (TURN_TIMES, TURN_TIMES))
    many = jobs(*[(1, 50)] * 200)
    assert max(completion_times([], many, two).values()) == pytest.approx(
        max(completion_times([], many, one).values()) / 2, rel=0.1
    )


def report(**fields: object) -> WorkerReport:
    given = {"name": "w", "models": [{"name": "m"}, {"name": "o"}], "max_batch": 16, "trajectories": 0}
    given |= {"pending_evaluations": 0, "evaluations_per_second": None}
    return WorkerReport(**{**given, **fields})  # type: ignore[arg-type]


def test_there_is_no_estimate_without_measurements() -> None:
    assert WorkerPool.of_model("m", [report()]) is None
    assert WorkerPool.of_model("m", []) is None
    assert WorkerPool.of_model("other", [report(paces={"other": TURN_TIMES})]) is None, "nobody serves it"


def test_a_model_without_measured_turns_uses_the_overall_speed() -> None:
    times = turn_times(report(evaluations_per_second=50.0), "m")
    assert [turn_seconds(times, rows) for rows in (1, 10, 100)] == [pytest.approx(rows / 50) for rows in (1, 10, 100)]


def test_turns_of_other_busy_models_are_included() -> None:
    worker = report(paces={"m": TURN_TIMES, "o": [(1.0, 0.5), (16.0, 0.5)]})
    alone, shared = WorkerPool.of_model("m", [worker]), WorkerPool.of_model("m", [worker], ["m", "o"])
    assert alone is not None
    assert shared is not None
    assert alone.turn_seconds(1) == pytest.approx(0.01)
    assert shared.turn_seconds(1) == pytest.approx(0.51)


def test_other_models_of_other_callers_get_their_share_of_the_time_at_most() -> None:
    """One caller has jobs of the slow model, and two have jobs of the fast one: they get half a second for each."""
    worker = report(paces={"m": TURN_TIMES, "o": [(1.0, 0.5), (16.0, 0.5)]})
    found = WorkerPool.of_model("m", [worker], ["m", "o"], others_share=0.5)
    assert found is not None
    assert found.turn_seconds(1) == pytest.approx(0.01 * 1.5)
    slow = WorkerPool.of_model("o", [worker], ["m", "o"], others_share=2.0)
    assert slow is not None
    assert slow.turn_seconds(1) == pytest.approx(0.5 + 0.085)


def test_each_model_has_its_own_slots() -> None:
    """A model with small batches takes longer between two turns of another one than its own batch allows."""
    paces = {"m": TURN_TIMES, "o": [(1.0, 0.5), (16.0, 8.0)]}
    worker = report(paces=paces, batches={"m": [32, 8, 128], "o": [1, 1, 64]})
    small, large = (WorkerPool.of_model(name, [worker, worker], ["m", "o"]) for name in "om")
    assert small is not None
    assert large is not None
    assert (small.slots, small.reserved, small.places) == (2, 2, 128)
    assert (large.slots, large.reserved, large.places) == (64, 16, 256)
    assert large.other_models_seconds == pytest.approx(0.5)


def test_decoding_is_included_one_job_after_the_other() -> None:
    times = [(1.0, 0.01), (64.0, 0.01)]
    plain = pool(times=times)
    decoded = replace(plain, decode_seconds=0.5)
    assert completion_times([], jobs((1, 10)), decoded) == {"0": pytest.approx(0.1 + 0.5)}
    assert completion_times([], jobs((4, 10)), decoded) == {"0": pytest.approx(0.1 + 2.0)}
    ends = completion_times([], jobs((1, 10), (2, 10), (1, 200)), decoded)
    assert ends == {"0": pytest.approx(0.6), "1": pytest.approx(1.6), "2": pytest.approx(2.5)}


def test_decoders_of_several_workers_share_the_pictures() -> None:
    workers = [report(paces={"m": TURN_TIMES}, decode_seconds={"m": seconds}) for seconds in (0.4, 0.8)]
    found = WorkerPool.of_model("m", workers)
    assert found is not None
    assert found.decode_seconds == pytest.approx(0.3)


@given(st.floats(0.1, 500))
def test_a_turn_of_more_rows_takes_longer(rows: float) -> None:
    assert 0 < turn_seconds(TURN_TIMES, rows) <= turn_seconds(TURN_TIMES, rows * 1.1)


def test_a_long_queue_is_estimated_quickly_and_completely() -> None:
    many = jobs(*[(1, 20 + k % 50) for k in range(1000)])
    started = time.thread_time()
    ends = completion_times([], many, pool())
    assert time.thread_time() - started < 0.5
    assert len(ends) == 1000
    assert ends["999"] == pytest.approx(sum(work.evaluations for work in many) * 0.085 / 16, rel=0.2)
