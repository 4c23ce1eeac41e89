"""LCM and TCD, the samplers of distilled models, against closed forms and diffusers' schedulers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, TCDScheduler
from torch import Tensor

from denoised.model.diffusion.distilled import boundary_scalings, distilled_levels
from denoised.model.diffusion.grids import SPACINGS, Grid, timesteps
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan, advance
from denoised.model.diffusion.predictions import Estimate, estimate_from_output
from denoised.model.diffusion.samplers import compile_plan
from denoised.model.errors import PlanError

STABLE = NoiseSchedule.from_name("scaled_linear", start=0.00085, end=0.012)
MU, S = 0.3, 0.5
KINDS: dict[str, Any] = {"lcm": LCMScheduler, "tcd": TCDScheduler}
DISTILLED = list(KINDS)


def output(x: Tensor, t: float, prediction_type: str) -> Tensor:
    """What the ideal network for data N(.3, .5²) predicts (mathematics.md, closed forms)."""
    alpha, sigma = STABLE.alpha[int(t)], STABLE.sigma[int(t)]
    v = alpha**2 * S**2 + sigma**2
    x0, epsilon = (alpha * S**2 * x + sigma**2 * MU) / v, sigma * (x - alpha * MU) / v
    return {"epsilon": epsilon, "sample": x0, "v_prediction": alpha * epsilon - sigma * x0}[prediction_type]


def start() -> Tensor:
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def follow(plan: Plan, prediction_type: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = start()
    for row in range(plan.evaluations):
        alpha, sigma = (torch.full((len(x),), float(level[row]), dtype=x.dtype) for level in (plan.alpha, plan.sigma))
        estimate = estimate_from_output(output(x, plan.t[row], prediction_type), x, alpha, sigma, prediction_type)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype) if plan.draws_noise(row) else torch.zeros_like(x)
        x = advance(x[:, None], estimate, z, torch.from_numpy(plan.matrices[row]).expand(len(x), -1, -1))[:, 0]
    return x


def diffusers_run(sampler: str, steps: int, prediction_type: str, **options: Any) -> Tensor:
    original = {"original_inference_steps": options.pop("original")} if "original" in options else {}
    scheduler = KINDS[sampler](prediction_type=prediction_type, **original)
    scheduler.alphas_cumprod = torch.from_numpy(STABLE.alpha**2)
    scheduler.set_timesteps(steps)
    generator, x = torch.Generator().manual_seed(0), start()
    for t in scheduler.timesteps:
        x = scheduler.step(output(x, int(t), prediction_type), t, x, generator=generator, **options).prev_sample
    return x


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_a_run_of_lcm_ends_where_diffusers_ends(steps: int, prediction_type: str) -> None:
    """To 1e-7: diffusers computes c_skip and c_out in float32."""
    ours = follow(compile_plan("lcm", STABLE, steps, Grid()), prediction_type)
    torch.testing.assert_close(ours, diffusers_run("lcm", steps, prediction_type), rtol=0, atol=1e-7)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.0])
def test_a_run_of_tcd_ends_where_diffusers_ends(steps: int, prediction_type: str, gamma: float) -> None:
    ours = follow(compile_plan("tcd", STABLE, steps, Grid(), eta=gamma), prediction_type)
    torch.testing.assert_close(ours, diffusers_run("tcd", steps, prediction_type, eta=gamma), rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", DISTILLED)
@pytest.mark.parametrize("original", [4, 20, 100, 999])
def test_the_number_of_timesteps_of_distillation_is_that_of_the_file(sampler: str, original: int) -> None:
    gamma = 0.3  # TCD's default in diffusers
    ours = follow(compile_plan(sampler, STABLE, 4, Grid(original_steps=original), eta=gamma), "epsilon")
    torch.testing.assert_close(ours, diffusers_run(sampler, 4, "epsilon", original=original), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", DISTILLED)
@pytest.mark.parametrize(("total", "original"), [(1000, 50), (1000, 999), (120, 50), (50, 50)])
def test_the_timesteps_are_those_of_diffusers(sampler: str, total: int, original: int) -> None:
    """Every number of steps up to that of distillation; diffusers refuses more."""
    schedule = NoiseSchedule.from_name("linear", total)
    scheduler = KINDS[sampler](num_train_timesteps=total, original_inference_steps=original)
    for steps in range(1, original + 1):
        scheduler.set_timesteps(steps)
        ours = distilled_levels(schedule, steps, Grid(original_steps=original)).t
        assert ours.tolist() == scheduler.timesteps.tolist(), steps


def test_four_steps_start_at_the_last_timestep() -> None:
    assert distilled_levels(STABLE, 4, Grid()).t.tolist() == [999, 759, 499, 259]


def test_more_steps_than_those_of_distillation_have_trailing_spacing() -> None:
    """With 50 steps the two grids are the same."""
    assert distilled_levels(STABLE, 50, Grid()).t.tolist() == timesteps(1000, 50, "trailing")
    assert distilled_levels(STABLE, 80, Grid()).t.tolist() == timesteps(1000, 80, "trailing")
    few = NoiseSchedule.from_name("linear", 10)
    assert distilled_levels(few, 4, Grid()).t.tolist() == [9, 7, 4, 2]
    with pytest.raises(PlanError, match="steps = 1001 is outside 1 … 1000"):
        distilled_levels(STABLE, 1001, Grid())


@pytest.mark.parametrize("sampler", DISTILLED)
def test_the_spacing_of_the_model_does_not_change_them(sampler: str) -> None:
    plans = [compile_plan(sampler, STABLE, 4, Grid(spacing, steps_offset=1)) for spacing in SPACINGS]
    assert all((plan.t == plans[0].t).all() and (plan.matrices == plans[0].matrices).all() for plan in plans)


def test_the_boundary_condition_is_that_of_diffusers() -> None:
    """f(x, 0) = x."""
    assert boundary_scalings(0.0) == (1.0, 0.0)
    for scaling in (10.0, 0.05):
        scheduler = LCMScheduler(timestep_scaling=scaling)
        for t in (1, 19, 500, 999):
            theirs = scheduler.get_scalings_for_boundary_condition_discrete(t)
            assert boundary_scalings(t, scaling) == pytest.approx(theirs, rel=1e-12)
            plan = compile_plan("lcm", STABLE, 1, Grid(timestep_scaling=scaling))
            assert plan.matrices[0, 0, :2].tolist() == list(boundary_scalings(999, scaling))


def test_the_lower_level_of_tcd_is_rounded_as_diffusers_rounds_it() -> None:
    """⌊(1 − γ)·t'⌋ in float32, for every timestep that a run of fifty steps visits."""
    for gamma in np.linspace(0.05, 1, 20).tolist():
        plan = compile_plan("tcd", STABLE, 50, Grid(), eta=gamma)
        below = torch.floor((1 - gamma) * torch.from_numpy(plan.t[1:]).long()).long()
        alpha = plan.alpha[1:] / STABLE.alpha[below.numpy()]
        assert plan.matrices[:-1, 0, -1] == pytest.approx(np.sqrt(1 - alpha**2), rel=1e-9)


def consistent(plan: Plan) -> tuple[float, float]:
    """Mean and standard deviation of LCM's output for a network that makes f the exact solution of the flow:
    c_skip·x + c_out·x̂_0 = μ + (x − α·μ)·s/√v (mathematics.md, closed forms)."""
    mean, variance = 0.0, 1.0
    for row in range(plan.evaluations):
        alpha, sigma = plan.alpha[row], plan.sigma[row]
        c_skip, c_out = boundary_scalings(plan.t[row])
        slope = S / math.sqrt(alpha**2 * S**2 + sigma**2)
        of_x, of_x0, _, of_z = plan.matrices[row, 0]
        a = of_x + of_x0 * (slope - c_skip) / c_out
        b = of_x0 * (MU - alpha * MU * slope) / c_out
        mean, variance = a * mean + b, a**2 * variance + of_z**2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50, 100, 500])
def test_lcm_with_an_exact_consistency_function_draws_from_the_data(steps: int) -> None:
    """N(.3, .5²) in any number of steps. x_T ~ N(0, 1) has not the mean of x at T, which fewer steps forget less."""
    mean, std = consistent(compile_plan("lcm", STABLE, steps, Grid()))
    assert mean == pytest.approx(MU, abs={1: 0.011, 2: 0.004}.get(steps, 1e-3))
    assert std == pytest.approx(S, abs=2e-3)


def end_of_single_point(sampler: str, steps: int, eta: float = 0.0) -> tuple[Plan, float, float]:
    """The mean and the standard deviation where the data are a single point, from x_T = α·μ + σ·z on."""
    plan = compile_plan(sampler, STABLE, steps, Grid(), eta)
    mean, variance = float(plan.alpha[0] * MU), float(plan.sigma[0] ** 2)
    for row in range(plan.evaluations):
        alpha, sigma = plan.alpha[row], plan.sigma[row]
        of_x, of_x0, of_epsilon, of_z = plan.matrices[row, 0]
        a = of_x + of_epsilon / sigma  # ε̂ = (x − α·μ)/σ
        mean = a * mean + (of_x0 - of_epsilon * alpha / sigma) * MU
        variance = a**2 * variance + of_z**2
    return plan, mean, math.sqrt(variance)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 50])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd_reaches_a_single_data_point_with_the_noise_of_timestep_0(steps: int, eta: float) -> None:
    _, mean, std = end_of_single_point("tcd", steps, eta)
    assert mean == pytest.approx(STABLE.alpha[0] * MU, abs=1e-10)
    assert std == pytest.approx(STABLE.sigma[0], abs=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 50])
def test_lcm_reaches_a_single_data_point_up_to_its_boundary_condition(steps: int) -> None:
    """The last x, of level (α, σ), keeps c_skip of its weight."""
    plan, mean, std = end_of_single_point("lcm", steps)
    c_skip, c_out = boundary_scalings(plan.t[-1])
    assert mean == pytest.approx((c_out + c_skip * plan.alpha[-1]) * MU, abs=1e-9)
    assert std == pytest.approx(c_skip * plan.sigma[-1], rel=1e-6)


def test_tcd_without_noise_is_ddim_that_ends_at_timestep_0() -> None:
    """On the grid of distillation, 50 steps, which is the trailing one."""
    ours = compile_plan("tcd", STABLE, 50, Grid())
    ddim = compile_plan("ddim", STABLE, 50, Grid("trailing", set_alpha_to_one=False))
    assert ours.matrices == pytest.approx(ddim.matrices, abs=1e-15)


def test_with_zero_terminal_snr_the_first_row_is_finite() -> None:
    """α = 0, where the network predicts v: x̂_0 = −v."""
    schedule = STABLE.with_zero_terminal_snr()
    for sampler in DISTILLED:
        plan = compile_plan(sampler, schedule, 4, Grid(), eta=0.3 if sampler == "tcd" else 0.0)
        assert plan.alpha[0] == 0.0
        x = torch.ones(1, 1, 2, 2, dtype=torch.float64)
        registers = advance(x[:, None], Estimate(-x, x), x, torch.from_numpy(plan.matrices[:1]))
        assert torch.isfinite(registers).all()
