"""How long the engine's turns take, by their size."""

from __future__ import annotations

import pytest

from denoised.worker.engine.speed import Speed


def test_nothing_is_known_before_the_second_turn() -> None:
    """Libraries load their kernels in a model's first turn."""
    speed = Speed()
    assert (speed.per_second, speed.paces()) == (None, {})
    speed.add("m", 4, 100.0)
    assert (speed.total, speed.per_second, speed.paces()) == (4, None, {})
    speed.add("m", 4, 0.5)
    assert speed.per_second == 8.0
    assert speed.paces() == {"m": [(4.0, 0.5)]}


def test_turns_of_few_and_of_many_rows_are_averaged_separately() -> None:
    speed = Speed()
    speed.add("m", 1, 9.0)
    speed.add("m", 1, 0.01)
    for _ in range(1000):
        speed.add("m", 16, 0.08)
    assert speed.per_second == pytest.approx(200, rel=0.01)
    assert speed.paces()["m"] == [(1.0, 0.01), (pytest.approx(16.0), pytest.approx(0.08))]


def test_a_change_of_speed_is_followed() -> None:
    speed = Speed()
    for seconds in [0.1] * 100 + [0.2] * 100:
        speed.add("m", 8, seconds)
    ((rows, seconds),) = speed.paces()["m"]
    assert rows == pytest.approx(8)
    assert seconds == pytest.approx(0.2, rel=0.01)


def test_each_model_has_its_own_paces() -> None:
    speed = Speed()
    for _ in range(3):
        speed.add("large", 2, 1.0)
        speed.add("small", 2, 0.01)
    assert speed.paces() == {"large": [(2.0, 1.0)], "small": [(2.0, 0.01)]}


def test_measurements_from_before_the_first_job_are_replaced_by_those_of_jobs() -> None:
    speed = Speed()
    speed.expect("m", [(1, 0.01), (16, 0.08)])
    assert speed.paces() == {"m": [(1, 0.01), (16, 0.08)]}
    assert speed.per_second is None
    for _ in range(200):
        speed.add("m", 16, 0.16)
    assert speed.paces()["m"][1][1] == pytest.approx(0.16, rel=0.01)
