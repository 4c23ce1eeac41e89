"""The noise level ρ = σ/α falls strictly: for every schedule, spacing and number of steps.

Samplers divide by differences of log ρ, and take the root of ρ² − ρ'².
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from denoised.model.diffusion.grids import (
    SPACINGS,
    Grid,
    capped_ratio_levels,
    midpoint_levels,
    ratio_levels,
    solver_levels,
)
from denoised.model.diffusion.noise import BETAS, NoiseSchedule
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan
from denoised.model.diffusion.spacings import CAPPED_RATIO, STEEP_RATIO, RatioSpacing
from denoised.model.errors import CheckpointError

KARRAS = RatioSpacing("karras")
TIMESTEPS = 1000
FAMILIES = (ratio_levels, capped_ratio_levels, midpoint_levels, solver_levels)


def build_schedule(name: str, zero_snr: bool, timesteps: int = TIMESTEPS) -> NoiseSchedule:
    schedule = NoiseSchedule.from_name(name, timesteps)
    return schedule.with_zero_terminal_snr() if zero_snr else schedule


def check_levels(schedule: NoiseSchedule, spacing: str, karras: bool, families: tuple = FAMILIES) -> None:
    """Every number of steps: falling and finite ρ, falling times within the timesteps, the requested number."""
    for family, steps in itertools.product(families, range(1, schedule.timesteps + 1)):
        levels = family(schedule, steps, Grid(spacing, ratio_spacing=KARRAS if karras else None))
        case = (family.__name__, steps)
        assert levels.steps == (2 * steps - 1 if family is midpoint_levels else steps), case
        assert np.isfinite(levels.ratio).all(), case
        assert (np.diff(levels.ratio) < 0).all(), case
        assert (np.diff(levels.t) < 0).all(), case
        assert levels.t[0] <= schedule.timesteps - 1, case
        assert levels.t[-1] >= 0, case


@pytest.mark.parametrize("name", ["linear", "sigmoid"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_levels_fall_for_every_number_of_steps_where_the_second_to_last_level_is_high(name: str, spacing: str) -> None:
    """With zero terminal SNR, timestep 998 has ρ = 15,406 on the linear schedule, above diffusers' 4,096 for 999."""
    schedule = build_schedule(name, zero_snr=True)
    assert schedule.sigma[998] / schedule.alpha[998] > 4096
    check_levels(schedule, spacing, karras=False, families=(ratio_levels, solver_levels))


@pytest.mark.slow
@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("karras", [False, True])
def test_levels_fall_for_every_schedule_spacing_and_number_of_steps(
    name: str, zero_snr: bool, spacing: str, karras: bool
) -> None:
    check_levels(build_schedule(name, zero_snr), spacing, karras)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_plan_is_finite_with_zero_terminal_snr(sampler: str) -> None:
    """`euler_a`, `pc` and `dpmpp_2m_sde` were not, from 286 trailing and 266 linspace steps up."""
    for name, spacing in itertools.product(("linear", "sigmoid"), SPACINGS):
        schedule = build_schedule(name, zero_snr=True)
        for steps in (1, 2, 266, 286):
            plan = compile_plan(sampler, schedule, steps, Grid(spacing))
            assert np.isfinite(plan.matrices.astype(np.float32)).all(), (name, spacing, steps)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_every_plan_is_finite_on_every_schedule(sampler: str, name: str, zero_snr: bool) -> None:
    for timesteps, spacing, karras in itertools.product((2, 100), SPACINGS, (False, True)):
        schedule = build_schedule(name, zero_snr, timesteps)
        for steps in range(1, timesteps + 1):
            plan = compile_plan(sampler, schedule, steps, Grid(spacing, ratio_spacing=KARRAS if karras else None))
            assert np.isfinite(plan.matrices).all(), (timesteps, spacing, karras, steps)
    for spacing, steps in itertools.product(SPACINGS, (266, 286, 999, 1000)):
        assert np.isfinite(compile_plan(sampler, build_schedule(name, zero_snr), steps, Grid(spacing)).matrices).all()


def test_the_level_at_pure_noise_is_that_of_diffusers_unless_the_next_is_above_half_of_it() -> None:
    linear = build_schedule("linear", zero_snr=True)
    for steps in (1, 10, 100):
        assert ratio_levels(linear, steps, Grid("trailing")).ratio[0] == pytest.approx(4096, rel=1e-12)
    first, second = ratio_levels(linear, 1000, Grid("trailing")).ratio[:2]
    assert second == pytest.approx(15406, rel=1e-4)
    assert first == pytest.approx(2 * second, rel=1e-12)


def test_an_ancestral_step_from_any_level_has_a_finite_weight() -> None:
    """ρ_down = ρ'²/ρ; as √(ρ'² − ρ_up²) it was the root of rounding error for ρ'/ρ < 1e-8."""
    steep = NoiseSchedule.from_name("linear", 3000, 1e-4, 0.05)
    assert steep.sigma[-1] / steep.alpha[-1] > 1e15
    for spacing in SPACINGS:
        for steps in range(1, 30):
            assert np.isfinite(compile_plan("euler_a", steep, steps, Grid(spacing)).matrices).all()
            assert np.isfinite(compile_plan("pc", steep, steps, Grid(spacing)).matrices).all()


@pytest.mark.parametrize("sampler", [name for name, sampler in SAMPLERS.items() if sampler.takes_spacing])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_karras_levels_skip_the_steep_start_of_a_schedule(sampler: str, zero_snr: bool) -> None:
    """From ρ = 20,000, 70 % of them would lie above 20, where x_t holds nothing of the image."""
    for name, spacing in itertools.product(BETAS, SPACINGS):
        schedule = build_schedule(name, zero_snr)
        highest = schedule.sigma[-1] / schedule.alpha[-1] if not zero_snr else np.inf
        for steps in (1, 20):
            plan = compile_plan(sampler, schedule, steps, Grid(spacing, ratio_spacing=KARRAS))
            first = plan.sigma[0] / plan.alpha[0]
            if highest > STEEP_RATIO:
                assert first <= CAPPED_RATIO * (1 + 1e-12), (name, spacing, steps)
            elif spacing == "trailing":
                assert first == pytest.approx(highest, rel=1e-12), (name, spacing, steps)


def test_karras_levels_start_at_the_least_log_snr_of_the_file() -> None:
    """λ_min = −5.1 is ρ = 164."""
    cosine = build_schedule("squaredcos_cap_v2", zero_snr=False)
    plan = compile_plan("dpmpp_3m", cosine, 20, Grid("linspace", ratio_spacing=KARRAS, lambda_min=-5.1))
    assert 130 < plan.sigma[0] / plan.alpha[0] < np.exp(5.1)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.999] * 1000, "the β leave no signal from timestep 25 on"),
        ([0.5, 1e-20, 0.5], "timesteps 0 and 1 have the same noise level in float64"),
    ],
)
def test_a_schedule_whose_noise_does_not_rise_is_refused(betas: list[float], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        NoiseSchedule.from_betas(np.asarray(betas))


def test_zero_terminal_snr_needs_two_timesteps() -> None:
    with pytest.raises(CheckpointError, match="needs at least 2 timesteps, not 1"):
        NoiseSchedule.from_betas(np.array([0.5])).with_zero_terminal_snr()
    assert NoiseSchedule.from_betas(np.array([0.5, 0.5])).with_zero_terminal_snr().alpha[-1] == 0.0
