"""Power-function averages: their profiles, their update, and their combination from snapshots."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from denoised.model.errors import TrainingError
from denoised.model.training.power_averages import (
    WIDTHS,
    PowerAverages,
    Profile,
    check_width,
    combine,
    decay,
    exponent,
    inner_products,
    snapshot_steps,
)

STEPS = 2000


def average(values: np.ndarray, width: float) -> float:
    """∫ of a trajectory that is constant in each step, against the profile of a width."""
    gamma, edges = exponent(width), np.arange(len(values) + 1) / len(values)
    return float(np.diff(edges ** (gamma + 1)) @ values)


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94), (1 / math.sqrt(12), 0.0)])
def test_widths_and_exponents(width: float, gamma: float) -> None:
    """Karras et al. 2024, section 3.1: σ_rel of 0.05 and 0.10 are γ of 16.97 and 6.94; γ = 0 is uniform."""
    assert exponent(width) == pytest.approx(gamma, abs=5e-3)
    # The variance of p(τ) ∝ τ^γ on [0, 1].
    mean = (exponent(width) + 1) / (exponent(width) + 2)
    variance = (exponent(width) + 1) / (exponent(width) + 3) - mean**2
    assert math.sqrt(variance) == pytest.approx(width)


@pytest.mark.parametrize("width", [0.0, 0.009, 0.29, float("nan")])
def test_a_width_that_no_average_has_is_refused(width: float) -> None:
    with pytest.raises(TrainingError, match=rf"width = {width:g} is out of range \(0.01 … 0.28\)"):
        check_width(width)


def test_the_update_is_the_integral_over_steps() -> None:
    """θ̂ of a weight that is τ² in step τ, and of a buffer, which has its last value."""
    net = nn.BatchNorm1d(1)
    averages = PowerAverages(net)
    for step in range(1, 301):
        with torch.no_grad():
            net.weight.fill_((step / 300) ** 2)
            net.running_mean.fill_(step)  # type: ignore[union-attr, operator]
        averages.update(net, step)
    for width in WIDTHS:
        expected = average((np.arange(1, 301) / 300) ** 2, width)
        assert averages.values[width]["weight"].item() == pytest.approx(expected, rel=1e-5)
        assert averages.values[width]["running_mean"].item() == 300


def test_the_first_step_forgets_the_initial_weights() -> None:
    assert decay(exponent(0.05), 1) == 0.0
    assert 0.0 < decay(exponent(0.05), 2) < decay(exponent(0.05), 1000) < 1.0


def test_inner_products_are_the_integrals() -> None:
    profiles = [Profile(70.0, 0.5), Profile(100.0, 7.0), Profile(100.0, 16.97)]
    tau = (np.arange(200_000) + 0.5) / 2000  # 0 … 100
    values = [np.where(tau <= p.step, (p.gamma + 1) * tau**p.gamma / p.step ** (p.gamma + 1), 0.0) for p in profiles]
    expected = [[np.sum(a * b) / 2000 for b in values] for a in values]
    np.testing.assert_allclose(inner_products(profiles, profiles), expected, rtol=1e-6)


TRAJECTORIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "that never moves": np.ones_like,
    "on a line": lambda tau: 3 - 2 * tau,
    "with a bend": lambda tau: tau**3 - tau,
    "that converges": lambda tau: 1 - np.exp(-8 * tau),
    "that oscillates": lambda tau: np.sin(12 * tau),
}


@pytest.mark.parametrize("name", TRAJECTORIES)
@pytest.mark.parametrize("width", [0.04, 0.05, 0.07, 0.1, 0.13, 0.2])
def test_snapshots_combine_to_the_average_of_another_width(name: str, width: float) -> None:
    trajectory = TRAJECTORIES[name](np.arange(1, STEPS + 1) / STEPS)
    steps = sorted(snapshot_steps(16, STEPS))
    stored = np.array([average(trajectory[:step], own) for step in steps for own in WIDTHS])
    profiles = [Profile(step, exponent(own)) for step in steps for own in WIDTHS]
    found = combine(profiles, Profile(STEPS, exponent(width)))
    scale = float(np.abs(trajectory).max())
    assert found.weights @ stored == pytest.approx(average(trajectory, width), abs=4e-3 * scale)
    assert found.weights.sum() == pytest.approx(1.0, abs=1e-9)
    assert found.error < 0.025


@pytest.mark.parametrize("width", WIDTHS)
def test_a_width_that_was_kept_is_its_newest_snapshot(width: float) -> None:
    profiles = [Profile(step, exponent(own)) for step in (500, 1000) for own in WIDTHS]
    found = combine(profiles, Profile(1000, exponent(width)))
    expected = [float(each == Profile(1000, exponent(width))) for each in profiles]
    np.testing.assert_allclose(found.weights, expected, atol=1e-7)
    assert found.error < 1e-6


@pytest.mark.parametrize(("count", "error"), [(4, 0.102), (8, 0.033), (16, 0.009), (32, 0.002)])
def test_more_snapshots_come_closer(count: int, error: float) -> None:
    profiles = [Profile(step, exponent(own)) for step in sorted(snapshot_steps(count, STEPS)) for own in WIDTHS]
    assert combine(profiles, Profile(STEPS, exponent(0.15))).error == pytest.approx(error, abs=5e-4)


def test_snapshots_are_spread_over_the_run() -> None:
    assert sorted(snapshot_steps(4, 100)) == [25, 50, 75, 100]
    assert sorted(snapshot_steps(16, 3)) == [1, 2, 3]
    assert snapshot_steps(0, 100) == frozenset()
