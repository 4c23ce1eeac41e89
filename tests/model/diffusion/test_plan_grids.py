"""Which timesteps a plan visits (mathematics.md, traps 1–4 and 9)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from denoised.model.diffusion.grids import SPACINGS, Grid, timesteps
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan
from denoised.model.errors import PlanError

LINEAR = NoiseSchedule.from_name("linear")
DETERMINISTIC = ("euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_3m", "lms", "plms", "unipc", "unipc_3", "tcd")


def test_trailing_with_steps_that_do_not_divide_the_timesteps() -> None:
    """mathematics.md, trap 1, N = 13."""
    assert timesteps(1000, 13, "trailing") == [999, 922, 845, 768, 691, 614, 537, 461, 384, 307, 230, 153, 76]


def test_leading_starts_below_the_last_timestep_and_trailing_at_it() -> None:
    """mathematics.md, trap 2: N = 50 leading starts at 980, at 981 with offset 1; trailing starts at 999."""
    assert timesteps(1000, 50, "leading")[0] == 980
    assert timesteps(1000, 50, "leading", offset=1)[0] == 981
    assert timesteps(1000, 50, "trailing")[0] == 999


def test_ten_steps_of_each_spacing() -> None:
    """mathematics.md, trap 3, diffusers' DDIM: leading 900…0, trailing 999, 899, …, 99, linspace 999, 888, …, 0."""
    assert timesteps(1000, 10, "leading") == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert timesteps(1000, 10, "trailing") == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert timesteps(1000, 10, "linspace") == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]


def test_an_offset_shifts_a_leading_grid() -> None:
    """mathematics.md, trap 4: offset 1, N = 5."""
    assert timesteps(1000, 5, "leading", offset=1) == [801, 601, 401, 201, 1]


def test_an_offset_past_the_last_timestep_is_refused() -> None:
    """mathematics.md, trap 4: N = 1000 with offset 1 would read index 1000."""
    with pytest.raises(PlanError, match="steps = 1000 with steps_offset = 1 starts at 1000, past the last 999"):
        timesteps(1000, 1000, "leading", offset=1)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 13, 30, 333, 500, 501, 998, 999, 1000])
def test_the_number_of_timesteps_is_the_number_of_steps(spacing: str, steps: int) -> None:
    """mathematics.md, trap 9."""
    ts = timesteps(1000, steps, spacing)
    assert len(ts) == steps
    assert all(later < earlier for earlier, later in itertools.pairwise(ts))


@settings(deadline=None, database=None, max_examples=200)
@given(st.data(), st.integers(1, 4000), st.sampled_from(SPACINGS))
def test_every_grid_is_strictly_falling_and_within_the_timesteps(data: st.DataObject, total: int, spacing: str) -> None:
    steps = data.draw(st.integers(1, total))
    ts = timesteps(total, steps, spacing)
    assert len(ts) == steps
    assert all(later < earlier for earlier, later in itertools.pairwise(ts))
    assert ts[-1] >= 0
    assert ts[0] <= total - 1
    assert all(type(t) is int for t in ts)


@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_steps_outside_the_limits_are_refused(steps: int) -> None:
    with pytest.raises(PlanError, match=rf"steps = {steps} is outside 1 … 1000"):
        timesteps(1000, steps)


def test_an_unknown_spacing_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"timestep_spacing = 'karras' is not supported .*leading"):
        timesteps(1000, 10, "karras")


SAMPLERS_WITH_SPACING = [sampler for sampler in SAMPLERS if SAMPLERS[sampler].takes_spacing]
MIDPOINTS = ("dpm_2", "dpmpp_sde")


@pytest.mark.parametrize("sampler", [sampler for sampler in SAMPLERS_WITH_SPACING if sampler not in MIDPOINTS])
def test_a_plan_has_a_row_for_each_timestep_at_its_own_level(sampler: str) -> None:
    plan = compile_plan(sampler, LINEAR, 13, Grid(spacing="trailing"))
    visited = timesteps(1000, 13, "trailing")
    stages = SAMPLERS[sampler].stages
    if sampler == "heun":  # its second stage is at the level that the step leads to
        visited = visited[:1] + [t for t in visited[1:] for _ in range(2)]
    elif sampler == "plms":  # it takes its first step twice, and arrives at the second level twice
        visited = [visited[0], visited[1], *visited[1:]]
    else:
        visited = [t for t in visited[:-1] for _ in range(stages)] + visited[-1:]
    assert plan.sampler == sampler
    assert plan.t.tolist() == visited
    assert plan.alpha.tolist() == pytest.approx(LINEAR.alpha[visited].tolist(), rel=1e-12)
    assert plan.sigma.tolist() == pytest.approx(LINEAR.sigma[visited].tolist(), rel=1e-12)
    assert plan.steps == 13
    assert plan.evaluations == len(visited)
    assert plan.matrices.shape == (len(visited), plan.registers, plan.registers + 3)
    assert [plan.step[row] for row in range(plan.evaluations) if plan.completes_step(row)] == list(range(1, 14))


@pytest.mark.parametrize("sampler", MIDPOINTS)
def test_the_second_stage_is_at_the_logarithmic_midpoint_of_two_levels(sampler: str) -> None:
    plan = compile_plan(sampler, LINEAR, 13, Grid(spacing="trailing"))
    ratio = plan.sigma / plan.alpha
    assert plan.t[0::2].tolist() == timesteps(1000, 13, "trailing")
    assert ratio[1::2] == pytest.approx(np.sqrt(ratio[:-2:2] * ratio[2::2]), rel=1e-12)
    assert (np.diff(plan.t) < 0).all()
    assert plan.step == (*(k for step in range(12) for k in (step, step + 1)), 13)


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_sde"])
def test_the_two_stage_solvers_skip_the_steep_start_of_a_schedule(sampler: str) -> None:
    """A cosine schedule goes up to σ/α = 20,000, where Heun's correction would be multiplied a thousandfold."""
    cosine = NoiseSchedule.from_name("squaredcos_cap_v2")
    for spacing in ("trailing", "linspace"):
        assert first_ratio(sampler, LINEAR, spacing) == pytest.approx(157.4073, rel=1e-6)
        assert 15 < first_ratio(sampler, cosine, spacing) <= 20
        assert first_ratio("euler", cosine, spacing) > 10_000
    assert compile_plan(sampler, cosine, 1000, Grid("trailing")).steps == 1000


def first_ratio(sampler: str, schedule: NoiseSchedule, spacing: str) -> float:
    plan = compile_plan(sampler, schedule, 10, Grid(spacing))
    return float(plan.sigma[0] / plan.alpha[0])


def test_the_same_spacing_is_another_grid_in_each_family_of_samplers() -> None:
    """mathematics.md, trap 3: leading 900, 810, …, 90 and linspace 999, 899, …, 100 for DPM-Solver and UniPC;
    Euler's linspace falls between the timesteps (N = 5: 749.25 second); trailing is one for all."""
    for sampler in ("dpmpp_2m", "dpmpp_3m", "unipc"):
        assert compile_plan(sampler, LINEAR, 10, Grid("leading")).t.tolist() == list(range(900, 0, -90))
        expected = [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]
        assert compile_plan(sampler, LINEAR, 10, Grid("linspace")).t.tolist() == expected
    for sampler in ("euler", "lms", "langevin"):
        plan = compile_plan(sampler, LINEAR, 5, Grid("linspace"))
        assert sorted(set(plan.t), reverse=True) == [999, 749.25, 499.5, 249.75, 0]
    for sampler in SAMPLERS_WITH_SPACING:
        plan = compile_plan(sampler, LINEAR, 10, Grid("trailing"))
        assert set(range(999, 0, -100)) <= set(plan.t.tolist())


@pytest.mark.parametrize(("spacing", "start"), [("linspace", 157.4073), ("trailing", 157.4073), ("leading", None)])
def test_the_samplers_on_the_ratio_scale_unit_noise_as_diffusers_does(spacing: str, start: float | None) -> None:
    """mathematics.md, trap 36: σ_max, or √(σ_max² + 1) with leading spacing, in the scale x/α."""
    for sampler in ("euler", "heun", "dpm_2", "lms", "pc"):
        plan = compile_plan(sampler, LINEAR, 10, Grid(spacing))
        ratio = plan.sigma[0] / plan.alpha[0]
        expected = np.sqrt(ratio**2 + 1) if start is None else start
        assert plan.initial_scale / plan.alpha[0] == pytest.approx(expected, rel=1e-6)


def test_the_network_sees_x_in_its_training_scale() -> None:
    """mathematics.md, trap 35: at σ/α = 1 that is x̄/√2."""
    schedule = NoiseSchedule(np.array([0.9, np.sqrt(0.5)]), np.array([np.sqrt(0.19), np.sqrt(0.5)]))
    plan = compile_plan("euler", schedule, 1, Grid("trailing"))
    assert plan.alpha[0] == pytest.approx(1 / np.sqrt(2), rel=1e-12)
    assert plan.initial_scale == pytest.approx(plan.sigma[0], rel=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_but_the_last_has_one_evaluation_for_each_stage(sampler: str) -> None:
    """mathematics.md, trap 44: the calls are counted."""
    for steps in (1, 2, 13):
        plan = compile_plan(sampler, LINEAR, steps, Grid())
        extra = SAMPLERS[sampler].extra if steps > 1 else 0
        assert plan.evaluations == SAMPLERS[sampler].stages * (steps - 1) + 1 + extra


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_dpm_solver_family_starts_at_or_above_the_least_log_snr() -> None:
    """mathematics.md, trap 39: cosine, λ_min = −5.1; diffusers 0.42.1 starts its ten linspace steps at 992."""
    cosine = NoiseSchedule.from_name("squaredcos_cap_v2")
    for sampler in ("dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "unipc"):
        for spacing in SPACINGS:
            plan = compile_plan(sampler, cosine, 10, Grid(spacing, lambda_min=-5.1))
            assert plan.steps == 10
            assert np.isfinite(plan.matrices).all()
            assert np.log(plan.alpha / plan.sigma)[0] >= -5.1
    theirs = DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1)
    theirs.set_timesteps(10)
    plan = compile_plan("dpmpp_2m", cosine, 10, Grid("linspace", lambda_min=-5.1))
    assert plan.t.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_no_plan_ends_in_noise(sampler: str, spacing: str) -> None:
    """mathematics.md, traps 12 and 44: nothing is added in the last row."""
    variance_types = ("fixed_small", "fixed_large", "learned_range", "learned")
    for variance_type, steps in itertools.product(variance_types, (1, 2, 13, 50)):
        plan = compile_plan(sampler, LINEAR, steps, Grid(spacing, variance_type=variance_type), eta=1.0)
        drawn = [plan.draws_noise(row) for row in range(plan.evaluations)]
        assert drawn[-1] is False
        assert drawn[:-1] == [sampler not in DETERMINISTIC or SAMPLERS[sampler].takes_eta] * (plan.evaluations - 1)


def test_a_deterministic_plan_draws_no_noise() -> None:
    plan = compile_plan("ddim", LINEAR, 50, Grid(), eta=0.0)
    assert not any(plan.draws_noise(row) for row in range(50))


def test_unsupported_plan_settings_are_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"sampler = 'dpm_fast' is not offered .offered: ddpm, ddim"):
        compile_plan("dpm_fast", LINEAR, 10, Grid())
    with pytest.raises(PlanError, match=r"eta = 1.5 is outside 0 … 1"):
        compile_plan("ddim", LINEAR, 10, Grid(), eta=1.5)
    with pytest.raises(PlanError, match="eta = nan is outside 0 … 1"):
        compile_plan("ddim", LINEAR, 10, Grid(), eta=float("nan"))
    with pytest.raises(PlanError, match="variance_type = 'large' is not supported by ddpm"):
        compile_plan("ddpm", LINEAR, 10, Grid(variance_type="large"))
