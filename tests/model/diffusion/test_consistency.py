"""Multistep consistency sampling against closed forms and diffusers' `CMStochasticIterativeScheduler`.

For Gaussian data and for two points, the function that a consistency model learns is known: where the
probability-flow ODE through x ends (docs/mathematics.md, closed forms).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler
from torch import Tensor

from denoised.model.diffusion.distilled import consistency_levels
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan, advance
from denoised.model.diffusion.predictions import Estimate
from denoised.model.diffusion.samplers import CONSISTENCY, SAMPLERS, compile_plan, offered_samplers
from denoised.model.errors import PlanError

COSINE = NoiseSchedule.from_name("squaredcos_cap_v2")
MU, S = 0.3, 0.5
LEVELS = (40.0, 6.0, 1.1)
Jump = Callable[[Tensor, float], Tensor]  # f(x̄, ρ) of x̄ = x/α


def end_of_gaussian(x: Tensor, ratio: float) -> Tensor:
    """The ODE keeps (x̄ − μ)/√(s² + ρ²), and ends at ρ = 0."""
    return MU + (x - MU) * S / math.sqrt(S**2 + ratio**2)


def end_of_points(x: Tensor, ratio: float) -> Tensor:
    """Data at −1 and +1, each half of the time: the ODE keeps the sign of x̄, by symmetry."""
    return x.sign()


def follow(plan: Plan, jump: Jump, x: Tensor, generator: torch.Generator) -> Tensor:
    """x (B, C, H, W) in the form α·x_0 + σ·ε, through all rows; ε̂ is not a number, since no row may use it."""
    for row in range(plan.evaluations):
        x0 = jump(x / plan.alpha[row], plan.ratio(row))
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype) if plan.draws_noise(row) else torch.zeros_like(x)
        matrices = torch.from_numpy(plan.matrices[row]).expand(len(x), -1, -1)
        x = advance(x[:, None], Estimate(x0, torch.zeros_like(x)), z, matrices)[:, 0]
        assert not plan.matrices[row][:, 2].any(), "no row uses the noise estimate"
    return x


def tuned(steps: int) -> Plan:
    return compile_plan(CONSISTENCY, COSINE, steps, Grid(consistency_levels=LEVELS))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_exact_network_keeps_gaussian_data(steps: int) -> None:
    """x_T is unit noise, of which the level ρ_0 expects α²·s² + σ²: the first jump's deviation follows from that."""
    plan = tuned(steps)
    x = torch.randn(40_000, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ends = follow(plan, end_of_gaussian, x, torch.Generator().manual_seed(2))
    mean, variance = _moments(plan)
    assert float(ends.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / len(x)))
    assert float(ends.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / len(x)))
    # Unit noise has no mean, and it lacks (1 − s²)/ρ₀² of the variance: hardly anything at ρ₀ = 40.
    assert mean == pytest.approx(MU, abs=S * MU / 40)
    assert variance == pytest.approx(S**2, rel=1e-3)


def _moments(plan: Plan) -> tuple[float, float]:
    """Mean and variance of x_0, by the rows of the plan."""
    mean, variance = 0.0, plan.initial_scale**2
    for row in range(plan.evaluations):
        alpha, gain = plan.alpha[row], S / math.sqrt(S**2 + plan.ratio(row) ** 2)
        mean, variance = MU + (mean / alpha - MU) * gain, variance / alpha**2 * gain**2  # of x̂_0
        _, kept, _, noise = plan.matrices[row][0]
        mean, variance = kept * mean, kept**2 * variance + noise**2
    return mean, variance


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_exact_network_ends_on_the_points_of_the_data(steps: int) -> None:
    x = torch.randn(10_000, 1, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ends = follow(tuned(steps), end_of_points, x, torch.Generator().manual_seed(4))
    assert ends.abs().eq(1).all()
    assert abs(float(ends.mean())) < 5 / math.sqrt(len(x))


def test_a_run_ends_where_diffusers_ends() -> None:
    scheduler = CMStochasticIterativeScheduler(
        num_train_timesteps=40, sigma_min=2.0**-13, sigma_max=80.0, clip_denoised=False
    )
    scheduler.set_timesteps(timesteps=[30, 22, 8])
    levels = tuple(map(float, scheduler.sigmas[:-1]))
    plan = compile_plan(CONSISTENCY, COSINE, 3, Grid(consistency_levels=levels))
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    ours = follow(plan, end_of_gaussian, x, torch.Generator().manual_seed(0))
    theirs, generator = x / plan.alpha[0], torch.Generator().manual_seed(0)
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        # The output for which diffusers' scalings give f; its samples have the form x̄.
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition(level)
        output = (end_of_gaussian(theirs, level) - c_skip * theirs) / c_out
        scheduler.scale_model_input(theirs, t)  # it only looks up the level here
        theirs = scheduler.step(output, t, theirs, generator=generator).prev_sample
    # diffusers keeps noise of its σ_min at the end, and has its levels in float32.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_a_run_visits_the_first_of_the_levels_of_tuning() -> None:
    for steps in (1, 2, 3):
        assert tuned(steps).sigma / tuned(steps).alpha == pytest.approx(LEVELS[:steps], rel=1e-12)
    times = np.interp(np.log(LEVELS), np.log(COSINE.sigma / COSINE.alpha), np.arange(1000))
    assert tuned(3).t == pytest.approx(times, rel=1e-12)


@pytest.mark.parametrize("steps", [0, 4, 1000])
def test_other_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(PlanError, match=rf"^steps = {steps} is outside 1 … 3, the noise levels that the model was"):
        consistency_levels(COSINE, steps, Grid(consistency_levels=LEVELS))


@pytest.mark.parametrize("levels", [(1.0, 2.0), (1e9, 1.0), (1.0, 1e-9), (2.0, 2.0)])
def test_levels_that_are_not_the_schedules_are_refused(levels: tuple[float, ...]) -> None:
    with pytest.raises(PlanError, match=r"^sigmas are not 2 falling values within "):
        consistency_levels(COSINE, 2, Grid(consistency_levels=levels))


def test_weights_have_either_this_sampler_or_all_others() -> None:
    assert offered_samplers(Grid(consistency_levels=LEVELS)) == [CONSISTENCY]
    assert offered_samplers(Grid()) == [name for name in SAMPLERS if name != CONSISTENCY]
    assert not SAMPLERS[CONSISTENCY].takes_spacing
