"""How many images an evaluation holds: as many as a larger batch speeds up, measured with the engine."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from torch import Tensor

from denoised.model.diffusion.predictions import Estimate
from denoised.model.serving.loading import ZOO, load_for_serving
from denoised.worker.engine.batch_size import CPU_SIZES, USUAL, Pace, choose_max_batch, measure

ENOUGH = 120.0  # seconds to measure every size, on a busy machine too


def work(seconds: float) -> None:
    """Keep this thread busy."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def paces(*per_second: float) -> list[Pace]:
    """The paces of a network whose turns are long."""
    return [Pace(images, 100 * images / rate) for images, rate in zip(CPU_SIZES, per_second, strict=False)]


@pytest.mark.parametrize(
    ("per_second", "max_batch"),
    [
        ((100, 200, 400, 800, 1600, 3200), 32),
        ((100, 100, 100, 100, 100, 100), 1),
        ((100, 160, 200, 260, 270, 265), 8),
        ((100, 160, 260, 250, 280, 300), 32),
        ((100, 104, 104, 104, 104, 104), 1),
        ((100, 106, 106, 106, 106, 106), 2),
    ],
)
def test_it_is_the_smallest_batch_that_no_larger_one_beats_by_five_percent(
    per_second: tuple[float, ...], max_batch: int
) -> None:
    assert choose_max_batch(paces(*per_second)) == max_batch


def test_it_is_the_usual_batch_if_the_time_was_too_short_to_see_the_gain_end() -> None:
    assert choose_max_batch([]) == choose_max_batch(paces(100)) == choose_max_batch(paces(100, 200, 400)) == USUAL
    assert choose_max_batch(paces(50, 75, 101, 83)) == USUAL
    assert choose_max_batch(paces(50, 75, 101, 83, 102)) == 4


@pytest.mark.parametrize(("a_turn", "an_image", "max_batch"), [(0.008, 0.0, {32}), (0.0, 0.01, {1, 2, 4, 8})])
def test_a_network_is_measured_as_the_engine_drives_it(
    a_turn: float, an_image: float, max_batch: set[int], fake_model: Any
) -> None:
    """One whose batch costs nothing, and one whose batch brings nothing."""

    class Timed(fake_model):  # type: ignore[misc]
        def denoise(self, x: Tensor, *level: Any) -> Estimate:
            work(a_turn + an_image * len(x))
            estimate: Estimate = super().denoise(x, *level)
            return estimate

    found = measure(Timed(), seconds=ENOUGH)
    assert [pace.images for pace in found] == list(CPU_SIZES)
    assert all(pace.seconds >= a_turn + an_image * pace.images for pace in found)
    assert choose_max_batch(found) in max_batch


def test_it_is_the_usual_batch_if_turns_are_short_since_a_turn_costs_more_than_the_network() -> None:
    def flat(seconds: float) -> list[Pace]:
        return [Pace(images, seconds * images) for images in CPU_SIZES]

    assert choose_max_batch(flat(0.002)) == USUAL
    assert choose_max_batch(flat(0.02)) == 4
    assert choose_max_batch(flat(0.2)) == 1


def test_a_model_with_fewer_steps_than_measured_turns_is_measured() -> None:
    """A consistency model: its two noise levels are the only ones that a job may ask for."""
    found = measure(load_for_serving(ZOO / "fashion-mnist-consistency", device="cpu").model, seconds=ENOUGH)
    assert [pace.images for pace in found] == list(CPU_SIZES)
    assert all(0 < pace.seconds < math.inf for pace in found)


def test_measuring_ends_when_its_time_is_over(fake_model: Any) -> None:
    """Even if the time is lost to something else: this network sleeps."""
    started = time.monotonic()
    found = measure(fake_model(seconds=0.5), seconds=1.0)
    assert time.monotonic() - started < 9.0, "three turns of all six sizes take as long"
    assert 1 <= len(found) < len(CPU_SIZES)


def test_time_that_another_program_takes_is_not_counted(fake_model: Any) -> None:
    """The engine's thread sleeps meanwhile."""
    found = measure(fake_model(seconds=0.03), seconds=5.0)
    assert all(pace.seconds < 0.03 for pace in found)


def test_a_network_with_nan_output_is_not_measured_and_does_not_stop_the_worker(fake_model: Any) -> None:
    assert measure(fake_model(nan_class=0)) == []


def test_a_size_too_large_for_the_device_counts_as_no_gain(fake_model: Any) -> None:
    """The engine evaluates it in halves: it is not counted, and no larger size is tried."""

    class Small(fake_model):  # type: ignore[misc]
        def denoise(self, x: Tensor, *level: Any) -> Estimate:
            if len(x) > 4:
                raise MemoryError
            work(0.01)
            estimate: Estimate = super().denoise(x, *level)
            return estimate

    found = measure(Small(), seconds=ENOUGH)
    assert [(pace.images, math.isfinite(pace.seconds)) for pace in found] == [
        (1, True),
        (2, True),
        (4, True),
        (8, False),
    ]
    assert choose_max_batch(found) == 4
