"""Jobs that are expected to arrive: how often, from what was counted, and what they change in an estimate."""

from __future__ import annotations

import time

import pytest

from denoised.app.admission.queue.arrivals import WINDOW, ArrivalHistory
from denoised.app.admission.queue.estimate import MAX_EVENTS, ExpectedArrivals, RemainingWork, completion_times
from denoised.app.admission.queue.turn_times import WorkerPool

POOL = WorkerPool(slots=16, reserved=4, places=64, turn_times=([(1.0, 0.01), (16.0, 0.085)],))  # .005 + .005 rows
LINEAR = WorkerPool(slots=16, reserved=4, places=64, turn_times=([(1.0, 0.01), (16.0, 0.16)],))


def work(job: str, turns: float, images: int = 1, owner: str = "") -> RemainingWork:
    return RemainingWork(job, images, turns, 1.0, owner)


def history(*readings: tuple[float, int]) -> ArrivalHistory:
    arrivals = ArrivalHistory()
    arrivals.add(work("old", 20))
    for now, accepted in readings:
        arrivals.read(now, accepted)
    return arrivals


def test_turns_take_longer_from_each_expected_arrival_on() -> None:
    """10 turns of 1 row until .1 s, 5 of 2 until .2 s, 3.3 of 3 until .3 s, and 1.7 of 4."""
    expected = ExpectedArrivals(0.1, [work("like", 1000)])
    ends = completion_times([], [work("mine", 20)], LINEAR, "mine", expected)
    assert ends == {"mine": pytest.approx(0.3 + (20 - 10 - 5 - 10 / 3) * 0.04)}


def test_a_long_job_takes_as_long_as_the_law_of_little_says() -> None:
    """Turns of s seconds have 1 + 20 · 5 s rows and take .005 + .005 of these: s = .02. 400 jobs arrive meanwhile."""
    expected = ExpectedArrivals(1 / 20, [work("like", 5, owner="other")])
    started = time.thread_time()
    ends = completion_times([], [work("mine", 1000)], POOL, "mine", expected)
    assert ends == {"mine": pytest.approx(1000 * 0.02, rel=0.05)}
    assert time.thread_time() - started < 0.2
    assert MAX_EVENTS < 400, "they do not arrive one by one"


def test_expected_jobs_have_no_estimate_of_their_own() -> None:
    expected = ExpectedArrivals(0.001, [work("like", 1)])
    works = [work(str(k), 20, images=4) for k in range(60)]
    assert completion_times(works[:4], works[4:], POOL, None, expected).keys() == {each.job for each in works}


def test_pictures_of_expected_jobs_wait_for_the_same_decoder() -> None:
    pool = WorkerPool(16, 4, 64, ([(1.0, 0.01), (16.0, 0.01)],), decode_seconds=0.5)
    expected = ExpectedArrivals(0.055, [work("like", 1)])
    assert completion_times([], [work("mine", 10)], pool, "mine")["mine"] == pytest.approx(0.6)
    assert completion_times([], [work("mine", 10)], pool, "mine", expected)["mine"] == pytest.approx(0.065 + 1.0)


def test_arrivals_are_counted_in_a_window_of_eight_times_the_forecast() -> None:
    arrivals = history((0.0, 1000), (84.0, 1100), (92.0, 1116), (100.0, 1120))
    found = arrivals.expected(100.0, 1.0)
    assert found is not None
    assert found.seconds == pytest.approx(8 / 4)
    assert [each.turns for each in found.jobs] == [20]
    found = arrivals.expected(100.0, 2.0)
    assert found is not None
    assert found.seconds == pytest.approx(16 / 20)


def test_nothing_is_expected_where_nothing_arrived_or_nothing_is_known() -> None:
    assert history((0.0, 7), (50.0, 7)).expected(50.0, 1.0) is None
    assert history((0.0, 7)).expected(50.0, 1.0) is None
    assert history().expected(50.0, 1.0) is None
    assert ArrivalHistory().expected(50.0, 1.0) is None
    unknown = ArrivalHistory()
    unknown.read(0.0, 1)
    unknown.read(1.0, 2)
    assert unknown.expected(1.0, 1.0) is None, "this front end has accepted no job and knows no sizes"


def test_a_burst_delays_an_estimate_by_its_part_of_the_window() -> None:
    """120 jobs come at once, and none later."""
    found = history((0.0, 0), (10.0, 120)).expected(10.0, 15.0)
    assert found is not None
    assert 15.0 / found.seconds == pytest.approx(120 / WINDOW)


def test_a_counter_that_was_lost_begins_again() -> None:
    arrivals = history((0.0, 900), (1.0, 1000), (2.0, 3), (3.0, 5))
    found = arrivals.expected(3.0, 1.0)
    assert found is not None
    assert found.seconds == pytest.approx(8 / 2)


@pytest.mark.parametrize("horizon", [0.1, 1, 10, 100, 1000])
def test_a_steady_rate_is_found_at_every_scale_from_few_readings(horizon: float) -> None:
    arrivals = history(*((k / 10, k) for k in range(100_000)))
    found = arrivals.expected(9999.9, horizon)
    assert found is not None
    assert found.seconds == pytest.approx(0.1, rel=0.02)
    assert len(arrivals._readings) <= 256
