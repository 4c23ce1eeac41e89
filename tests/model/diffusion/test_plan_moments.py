"""Plans as exact affine maps: for Gaussian data the moments of their output are known without sampling.

Data N(μ, s²), the ideal network ε* = σ(x − αμ)/v, x̂_0 = (αs²x + σ²μ)/v with v = α²s² + σ² (mathematics.md, closed
forms).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from denoised.model.diffusion.grids import SPACINGS, VARIANCES, Grid, midpoint_levels, ratio_levels
from denoised.model.diffusion.langevin import LANGEVIN_STEPS, relative_variance, step_sizes
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan
from denoised.model.diffusion.spacings import RatioSpacing

KARRAS = RatioSpacing("karras")
LINEAR = NoiseSchedule.from_name("linear")
# The samplers of distilled models are in test_distilled.py.
UNDISTILLED = [sampler for sampler in SAMPLERS if SAMPLERS[sampler].takes_spacing]


def moments(plan: Plan, mu: float = 0.3, s: float = 0.5) -> tuple[float, float]:
    """Mean and standard deviation of a plan's output for x_T ~ N(0, initial_scale²).

    m ← A·m + B, V ← A·V·Aᵀ + noise².
    """
    count = plan.registers
    mean, covariance = np.zeros(count), np.zeros((count, count))
    covariance[0, 0] = plan.initial_scale**2
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
    """mathematics.md, closed forms, table, column "DDIM η0"; μ = .3, s = .5."""
    plan = compile_plan("ddim", LINEAR, steps, Grid(spacing), eta=0.0)
    assert moments(plan) == pytest.approx((mean, std), abs=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize(("steps", "spacing", "mean", "std"), FIXED_SMALL)
def test_ancestral_sampling_and_ddim_with_full_noise_reproduce_the_same_moments(
    sampler: str, steps: int, spacing: str, mean: float, std: float
) -> None:
    """mathematics.md, closed forms, table, column "DDIM η1 = ancestral fixed_small"."""
    plan = compile_plan(sampler, LINEAR, steps, Grid(spacing, variance_type="fixed_small"), eta=1.0)
    assert moments(plan) == pytest.approx((mean, std), abs=1e-6)


@pytest.mark.parametrize(("steps", "spacing", "mean", "std"), FIXED_LARGE)
def test_ancestral_sampling_with_the_larger_variance_reproduces_the_closed_form_moments(
    steps: int, spacing: str, mean: float, std: float
) -> None:
    """mathematics.md, closed forms, table, column "fixed_large"."""
    plan = compile_plan("ddpm", LINEAR, steps, Grid(spacing, variance_type="fixed_large"))
    assert moments(plan) == pytest.approx((mean, std), abs=1e-6)


def test_thirty_trailing_steps_go_to_the_next_entry_of_the_list() -> None:
    """mathematics.md, closed forms: right .299136/.453269; with t − T//N, as in diffusers, .297452/.457379."""
    plan = compile_plan("ddim", LINEAR, 30, Grid("trailing"))
    assert moments(plan) == pytest.approx((0.299136, 0.453269), abs=1e-6)


def test_the_end_level_changes_the_last_digits() -> None:
    """mathematics.md, trap 5: N = 10 leading, std .374128 when the end is ᾱ = 1, .374259 when it is ᾱ[0]."""
    ends = {True: 0.374128, False: 0.374259}
    for one, std in ends.items():
        plan = compile_plan("ddim", LINEAR, 10, Grid("leading", set_alpha_to_one=one))
        assert moments(plan)[1] == pytest.approx(std, abs=1e-6)


@pytest.mark.parametrize(("spacing", "factor"), [("leading", 0.8316958769), ("trailing", 0.8293692348)])
def test_ddim_on_unit_gaussian_data_multiplies_by_a_known_factor(spacing: str, factor: float) -> None:
    """mathematics.md, closed forms: ∏cos(θ_i − θ_{i+1}), cos θ = √ᾱ; 10 steps."""
    mean, std = moments(compile_plan("ddim", LINEAR, 10, Grid(spacing)), mu=0.0, s=1.0)
    assert mean == 0.0
    assert std == pytest.approx(factor, abs=1e-10)


@pytest.mark.parametrize("sampler", UNDISTILLED)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_single_data_point_is_reached_exactly_in_any_number_of_steps(sampler: str, spacing: str) -> None:
    """mathematics.md, closed forms and trap 7: s = 0, one data point, ends on μ with standard deviation 0."""
    # From ρ = 157, plms weighs differences of ε̂ by up to 157; their variances cancel up to 157² roundings.
    rounding = 1e-11 if sampler == "plms" else 1e-15
    for variance_type, steps, eta in product(VARIANCES, range(1, 6), (0.0, 1.0)):
        plan = compile_plan(sampler, LINEAR, steps, Grid(spacing, variance_type=variance_type), eta)
        mean, std = moments(plan, mu=0.3, s=0.0)
        assert mean == pytest.approx(0.3, abs=1e-10), (variance_type, steps, eta)
        # The square, because a root would magnify the rounding error.
        assert std**2 == pytest.approx(0.0, abs=rounding), (variance_type, steps, eta)


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "scaled_linear", "sigmoid"])
def test_more_steps_approach_the_data_on_every_schedule(schedule: str) -> None:
    """The standard deviation falls short by less and less (DDIM is of order 1, mathematics.md, closed forms)."""
    noise = NoiseSchedule.from_name(schedule)
    short = [0.5 - moments(compile_plan("ddim", noise, n, Grid("trailing")))[1] for n in (10, 50, 250)]
    assert short[0] > short[1] > short[2]
    assert short[2] == pytest.approx(0.0, abs=0.02)


def ideal_moments(sampler: str, ratio: np.ndarray, initial_std: float, deltas: np.ndarray) -> tuple[float, float]:
    """The moments by the closed form of each algorithm, without plans: x̄ = x/α in one dimension,
    ∇log p = −(x̄ − μ)/(s² + ρ²)."""
    mu, s = 0.3, 0.5
    mean, variance = 0.0, initial_std**2

    def langevin(step: float, rho: float) -> None:
        nonlocal mean, variance
        pull = step / (s**2 + rho**2)
        mean, variance = mean + pull / 2 * (mu - mean), (1 - pull / 2) ** 2 * variance + step

    for i in range(len(ratio) - 2):
        rho, rho_next = ratio[i], ratio[i + 1]
        if sampler == "langevin":
            for _ in range(LANGEVIN_STEPS):
                langevin(deltas[i] * rho**2, rho)
            continue
        if sampler == "pc":
            langevin(2 * (2 * 0.16**2 * rho**2), rho)  # step 2·ε of Song et al., ε = 2·(r·ρ)²/2
        weight = (rho**2 - rho_next**2) / (s**2 + rho**2)  # the ancestral step with data N(μ, s²)
        mean = mean + weight * (mu - mean)
        variance = (1 - weight) ** 2 * variance + rho_next**2 * (rho**2 - rho_next**2) / rho**2
    weight = ratio[-2] ** 2 / (s**2 + ratio[-2] ** 2)
    return float(mean + weight * (mu - mean)), float((1 - weight) * np.sqrt(variance))


@pytest.mark.parametrize("sampler", ["euler_a", "langevin", "pc"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_the_stochastic_samplers_reproduce_their_closed_form_moments(sampler: str, spacing: str, steps: int) -> None:
    """To 1e-9: a Gaussian stays a Gaussian under Langevin and ancestral steps, with a known recursion."""
    levels = ratio_levels(LINEAR, steps, Grid(spacing))
    scale = levels.initial_scale / levels.alpha[0]
    expected = ideal_moments(sampler, levels.ratio, scale, step_sizes(levels))
    assert moments(compile_plan(sampler, LINEAR, steps, Grid(spacing))) == pytest.approx(expected, abs=1e-9)


def brownian_moments(ratio: np.ndarray, initial_std: float) -> tuple[float, float]:
    """The moments of `dpmpp_sde` by its definition, with the two halves of each step's Brownian motion as variables.

    ratio: ρ_0, √(ρ_0·ρ_1), ρ_1, …, 0.
    """
    mu, s = 0.3, 0.5
    mean, variance = 0.0, initial_std**2
    for rho, middle, after in zip(ratio[:-2:2], ratio[1:-2:2], ratio[2::2], strict=False):
        # Weights of (x̄ − μ, first half, second half) for data N(μ, s²), where x̂_0 − μ = s²/(s² + ρ²)·(x̄ − μ).
        start, first, second = np.eye(3)
        down, up = middle**2 / rho, middle * np.sqrt(1 - (middle / rho) ** 2)
        at_middle = down / rho * start + (1 - down / rho) * s**2 / (s**2 + rho**2) * start + up * first
        whole = (np.sqrt(rho - middle) * first + np.sqrt(middle - after) * second) / np.sqrt(rho - after)
        down, up = after**2 / rho, after * np.sqrt(1 - (after / rho) ** 2)
        end = down / rho * start + (1 - down / rho) * s**2 / (s**2 + middle**2) * at_middle + up * whole
        mean, variance = mu + end[0] * (mean - mu), end[0] ** 2 * variance + end[1] ** 2 + end[2] ** 2
    weight = s**2 / (s**2 + ratio[-2] ** 2)
    return float(mu + weight * (mean - mu)), float(weight * np.sqrt(variance))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_the_two_stage_stochastic_sampler_reproduces_its_closed_form_moments(spacing: str, steps: int) -> None:
    levels = midpoint_levels(LINEAR, steps, Grid(spacing))
    expected = brownian_moments(levels.ratio, levels.initial_scale / levels.alpha[0])
    assert moments(compile_plan("dpmpp_sde", LINEAR, steps, Grid(spacing))) == pytest.approx(expected, abs=1e-9)


def test_more_steps_of_the_two_stage_stochastic_sampler_approach_the_data() -> None:
    """N(.3, .5²): within .5 % at 100 steps, and closer than ancestral steps of as many evaluations."""
    plans = [
        compile_plan("dpmpp_sde", LINEAR, steps, Grid("trailing", ratio_spacing=KARRAS)) for steps in (10, 30, 100)
    ]
    errors = [abs(moments(plan)[1] - 0.5) for plan in plans]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.0025
    ancestral = compile_plan("euler_a", LINEAR, plans[1].evaluations, Grid("trailing", ratio_spacing=KARRAS))
    assert errors[1] < abs(moments(ancestral)[1] - 0.5)


def test_langevin_steps_leave_a_point_mass_with_nearly_the_noise_of_its_level() -> None:
    """Song & Ermon 2020, technique 4: no size of a fine grid is better; the variance is within 16 % at 100 levels."""
    levels = ratio_levels(LINEAR, 100, Grid("leading", ratio_spacing=KARRAS))
    arriving = (levels.ratio[:-2] / levels.ratio[1:-1]) ** 2
    chosen = step_sizes(levels)
    reached = relative_variance(chosen[1:], arriving[:-1])
    grid = relative_variance(np.linspace(1e-3, 1.999, 4000)[:, None], arriving[None, :-1])
    assert (reached <= grid.min(axis=0) + 1e-9).all()
    assert (np.abs(reached - 1) < 0.16).all()


def affine(plan: Plan, ideal: Callable[[float, float, float], float]) -> tuple[float, float]:
    """Mean and standard deviation of a deterministic plan's output, from its values at x_T = 0 and 1."""
    ends = []
    for x in (0.0, 1.0):
        registers = np.zeros(plan.registers)
        registers[0] = plan.initial_scale * x
        for alpha, sigma, matrix in zip(plan.alpha, plan.sigma, plan.matrices, strict=True):
            x0 = ideal(registers[0], alpha, sigma)
            registers = matrix @ np.array([*registers, x0, (registers[0] - alpha * x0) / sigma, 0.0])
        ends.append(registers[0])
    return ends[0], ends[1] - ends[0]


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_3m", "lms", "unipc", "unipc_3"])
@pytest.mark.parametrize("karras", [False, True])
def test_a_thousand_steps_of_every_solver_reach_the_exact_flow(sampler: str, karras: bool) -> None:
    """mathematics.md, closed forms: x_0 = μ + (x_T − α_T·μ)·s/√v_T; mean .299047, std .500008 from N(0, 1)."""
    plan = compile_plan(sampler, LINEAR, 1000, Grid("trailing", ratio_spacing=KARRAS if karras else None))

    def ideal(x: float, alpha: float, sigma: float) -> float:
        return (alpha * 0.25 * x + sigma**2 * 0.3) / (alpha**2 * 0.25 + sigma**2)

    mean, std = affine(plan, ideal)
    tolerance = 2e-3 if sampler in ("euler", "dpmpp_2m") or not karras else 2e-4
    assert mean == pytest.approx(0.299047, abs=tolerance)
    assert std == pytest.approx(0.500008, abs=tolerance)
    assert (mean, abs(std)) == pytest.approx(moments(plan), abs=1e-6)
