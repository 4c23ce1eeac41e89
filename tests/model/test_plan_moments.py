"""Plans as exact affine maps: for Gaussian data the moments of their output are known without sampling.

Data N(μ, s²), the ideal network ε* = σ(x − αμ)/v, x̂_0 = (αs²x + σ²μ)/v with v = α²s² + σ² (SCIENCE b.5).
"""

from __future__ import annotations

import numpy as np
import pytest

from model.grids import SPACINGS, Grid
from model.noise import NoiseSchedule
from model.plans import Plan
from model.samplers import SAMPLERS, compile_plan

LINEAR = NoiseSchedule.named("linear")


def moments(plan: Plan, mu: float = 0.3, s: float = 0.5) -> tuple[float, float]:
    """Mean and standard deviation of a plan's output for x_T ~ N(0, start²): m ← A·m + B, V ← A·V·Aᵀ + noise²."""
    count = plan.registers
    mean, covariance = np.zeros(count), np.zeros((count, count))
    covariance[0, 0] = plan.start**2
    for alpha, sigma, matrix in zip(plan.alpha, plan.sigma, plan.matrices, strict=True):
        v = alpha**2 * s**2 + sigma**2
        of_x0, of_epsilon, of_z = matrix[:, count], matrix[:, count + 1], matrix[:, count + 2]
        a = matrix[:, :count].copy()
        a[:, 0] += of_x0 * alpha * s**2 / v + of_epsilon * sigma / v
        b = of_x0 * sigma**2 * mu / v - of_epsilon * sigma * alpha * mu / v
        mean, covariance = a @ mean + b, a @ covariance @ a.T + np.outer(of_z, of_z)
    return float(mean[0]), float(np.sqrt(max(covariance[0, 0], 0.0)))


DDIM = [
    (1000, "leading", 0.299050, 0.498495),
    (100, "leading", 0.298986, 0.485981),
    (50, "leading", 0.298911, 0.472439),
    (50, "trailing", 0.299102, 0.471403),
    (10, "leading", 0.298155, 0.374128),
    (10, "trailing", 0.299295, 0.369955),
    (10, "linspace", 0.299311, 0.361612),
    (13, "trailing", 0.299242, 0.397521),
]
FIXED_SMALL = [
    (1000, "leading", 0.299997, 0.496110),
    (100, "leading", 0.299996, 0.468256),
    (50, "leading", 0.299996, 0.444123),
    (50, "trailing", 0.299997, 0.444100),
    (10, "leading", 0.299980, 0.333263),
    (10, "trailing", 0.299997, 0.333475),
    (10, "linspace", 0.299997, 0.322835),
]
FIXED_LARGE = [
    (1000, "leading", 0.299997, 0.500752),
    (100, "leading", 0.299996, 0.508490),
    (50, "leading", 0.299996, 0.517229),
    (50, "trailing", 0.299997, 0.511719),
    (10, "leading", 0.299980, 0.589025),
    (10, "trailing", 0.299997, 0.493901),
    (10, "linspace", 0.299997, 0.598766),
]


@pytest.mark.parametrize(("steps", "spacing", "mean", "std"), DDIM)
def test_a_ddim_plan_reproduces_the_closed_form_moments(steps: int, spacing: str, mean: float, std: float) -> None:
    """SCIENCE b.5, table, column "DDIM η0"; μ = .3, s = .5."""
    plan = compile_plan("ddim", LINEAR, steps, Grid(spacing), eta=0.0)
    assert moments(plan) == pytest.approx((mean, std), abs=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize(("steps", "spacing", "mean", "std"), FIXED_SMALL)
def test_ancestral_sampling_and_ddim_with_full_noise_reproduce_the_same_moments(
    sampler: str, steps: int, spacing: str, mean: float, std: float
) -> None:
    """SCIENCE b.5, table, column "DDIM η1 = ancestral fixed_small"."""
    plan = compile_plan(sampler, LINEAR, steps, Grid(spacing, variance_type="fixed_small"), eta=1.0)
    assert moments(plan) == pytest.approx((mean, std), abs=1e-6)


@pytest.mark.parametrize(("steps", "spacing", "mean", "std"), FIXED_LARGE)
def test_ancestral_sampling_with_the_larger_variance_reproduces_the_closed_form_moments(
    steps: int, spacing: str, mean: float, std: float
) -> None:
    """SCIENCE b.5, table, column "fixed_large"."""
    plan = compile_plan("ddpm", LINEAR, steps, Grid(spacing, variance_type="fixed_large"))
    assert moments(plan) == pytest.approx((mean, std), abs=1e-6)


def test_thirty_trailing_steps_go_to_the_next_entry_of_the_list() -> None:
    """SCIENCE b.5: right .299136/.453269; with t − T//N, as in diffusers, .297452/.457379."""
    plan = compile_plan("ddim", LINEAR, 30, Grid("trailing"))
    assert moments(plan) == pytest.approx((0.299136, 0.453269), abs=1e-6)


def test_the_last_level_decides_the_last_digits() -> None:
    """SCIENCE trap 5: N = 10 leading, std .374128 when the end is ᾱ = 1, .374259 when it is ᾱ[0]."""
    ends = {True: 0.374128, False: 0.374259}
    for one, std in ends.items():
        plan = compile_plan("ddim", LINEAR, 10, Grid("leading", set_alpha_to_one=one))
        assert moments(plan)[1] == pytest.approx(std, abs=1e-6)


@pytest.mark.parametrize(("spacing", "factor"), [("leading", 0.8316958769), ("trailing", 0.8293692348)])
def test_ddim_on_unit_gaussian_data_multiplies_by_a_known_factor(spacing: str, factor: float) -> None:
    """SCIENCE b.5: ∏cos(θ_i − θ_{i+1}), cos θ = √ᾱ; 10 steps."""
    mean, std = moments(compile_plan("ddim", LINEAR, 10, Grid(spacing)), mu=0.0, s=1.0)
    assert mean == 0.0
    assert std == pytest.approx(factor, abs=1e-10)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_single_picture_is_hit_exactly_in_any_number_of_steps(
    sampler: str, spacing: str, steps: int, eta: float
) -> None:
    """SCIENCE b.5 and trap 7: s = 0, one data point, ends on μ with no spread."""
    for variance_type in ("fixed_small", "fixed_large"):
        plan = compile_plan(sampler, LINEAR, steps, Grid(spacing, variance_type=variance_type), eta)
        mean, std = moments(plan, mu=0.3, s=0.0)
        assert mean == pytest.approx(0.3, abs=1e-12)
        assert std == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "scaled_linear", "sigmoid"])
def test_more_steps_come_closer_to_the_data_on_every_schedule(schedule: str) -> None:
    """The spread falls short by less and less (DDIM is of order 1, SCIENCE b.5)."""
    noise = NoiseSchedule.named(schedule)
    short = [0.5 - moments(compile_plan("ddim", noise, n, Grid("trailing")))[1] for n in (10, 50, 250)]
    assert short[0] > short[1] > short[2]
    assert short[2] == pytest.approx(0.0, abs=0.02)
