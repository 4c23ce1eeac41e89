"""The solvers beyond DDPM and DDIM: beside diffusers' schedulers, and their orders of convergence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor

from model.grids import Grid, Levels
from model.noise import Estimate, NoiseSchedule
from model.plans import Plan, advance
from model.samplers import (
    SAMPLERS,
    Rows,
    compile_plan,
    ddim_rows,
    dpmpp_2m_rows,
    euler_a_rows,
    euler_rows,
    heun_rows,
)

# diffusers 0.42.1 makes numpy arrays of tensors the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LINEAR = NoiseSchedule.named("linear")
MU, S = 0.3, 0.5
SCHEDULERS = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
}


def believed(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """x̂_0 of the ideal network for data N(.3, .5²) (SCIENCE b.5)."""
    return (alpha * S**2 * x + sigma**2 * MU) / (alpha**2 * S**2 + sigma**2)


def follow(plan: Plan, x: Tensor) -> Tensor:
    """Run a plan with the ideal network, in float64; diffusers draws the noise of its SDE solver in float32."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.float32 if plan.sampler == "dpmpp_2m_sde" else x.dtype
    registers = torch.zeros(len(x), plan.registers, *x.shape[1:], dtype=x.dtype)
    registers[:, 0] = plan.start * x
    for row in range(plan.evaluations):
        x = registers[:, 0]
        alpha, sigma = float(plan.alpha[row]), float(plan.sigma[row])
        x0 = believed(x, alpha, sigma)
        z = torch.randn(x.shape, generator=generator, dtype=drawn) if plan.draws(row) else torch.zeros(x.shape)
        matrices = torch.from_numpy(plan.matrices[row]).expand(len(x), -1, -1)
        registers = advance(registers, Estimate(x0, (x - alpha * x0) / sigma), z.to(x.dtype), matrices)
    return registers[:, 0]


def diffusers_run(sampler: str, steps: int, spacing: str, x: Tensor, karras: bool = False) -> Tensor:
    """The same by diffusers, its ᾱ in float64; in its own scale x̃ = x/α where it has one."""
    kind, options = SCHEDULERS[sampler]
    more = {"use_karras_sigmas": karras} if sampler != "euler_a" else {}
    betas = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    scheduler = kind(timestep_spacing=spacing, **betas, **options, **more)
    scheduler.alphas_cumprod = torch.from_numpy(LINEAR.alpha**2)
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        ratio = float(scheduler.sigmas[scheduler.step_index or 0])
        alpha = 1 / np.sqrt(1 + ratio**2)
        sigma = ratio * alpha
        epsilon = (seen - alpha * believed(seen, alpha, sigma)) / sigma
        drawn = {} if sampler in ("heun",) else {"generator": generator}
        x = scheduler.step(epsilon, t, x, **drawn).prev_sample
    return x


def start() -> Tensor:
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [5, 20])
def test_a_whole_run_ends_where_that_of_diffusers_ends(sampler: str, spacing: str, steps: int) -> None:
    """1e-5 over whole runs; diffusers rounds its noise levels to float32."""
    ours = follow(compile_plan(sampler, LINEAR, steps, Grid(spacing)), start())
    torch.testing.assert_close(ours, diffusers_run(sampler, steps, spacing, start()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde"])
def test_a_run_on_karras_levels_ends_where_that_of_diffusers_ends(sampler: str) -> None:
    spacing = "linspace"
    ours = follow(compile_plan(sampler, LINEAR, 12, Grid(spacing, karras=True)), start())
    torch.testing.assert_close(ours, diffusers_run(sampler, 12, spacing, start(), karras=True), rtol=0, atol=1e-5)


def test_forty_karras_levels_are_forty_different_ones() -> None:
    """SCIENCE trap 37: levels are told apart by index, not by a rounded timestep."""
    for sampler in ("euler", "dpmpp_2m"):
        plan = compile_plan(sampler, LINEAR, 40, Grid("linspace", karras=True))
        assert plan.evaluations == 40
        assert (np.diff(plan.sigma / plan.alpha) < 0).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_any_number_of_steps_gives_a_finite_falling_plan(sampler: str, spacing: str) -> None:
    """SCIENCE traps 7 and 9: every N of 1 … T has N steps, at falling levels, with finite rows."""
    for steps in (1, 2, 3, 7, 13, 500, 501, 999, 1000):
        plan = compile_plan(sampler, LINEAR, steps, Grid(spacing))
        assert plan.steps == steps
        assert np.isfinite(plan.matrices).all()
        levels = [plan.sigma[row] for row in range(plan.evaluations) if row == 0 or plan.t[row] != plan.t[row - 1]]
        assert len(levels) == steps
        assert (np.diff(levels) < 0).all()


def test_the_cosine_schedule_is_finite_up_to_its_last_timestep() -> None:
    """SCIENCE traps 19 and 39."""
    cosine = NoiseSchedule.named("squaredcos_cap_v2")
    for sampler in SAMPLERS:
        plan = compile_plan(sampler, cosine, 10, Grid("trailing"))
        assert np.isfinite(plan.matrices).all()
        assert torch.isfinite(follow(plan, start())).all()


def test_euler_is_ddim_and_ancestral_euler_is_ddim_with_full_noise() -> None:
    """At the same levels, where x̂_0 is not clipped: one step of each has the same weights."""
    levels = Levels(LINEAR.alpha[[900, 500]], LINEAR.alpha[[900, 500, 100]], LINEAR.sigma[[900, 500, 100]])
    for eta, ours in ((0.0, euler_rows(levels)), (1.0, euler_a_rows(levels))):
        for row, theirs in zip(ours, ddim_rows(levels, eta), strict=True):
            x, x0, _, noise = theirs.matrix[0]
            of_epsilon = theirs.matrix[0][2]
            alpha, sigma = levels.alpha[row.level], levels.sigma[row.level]
            expected = [x + of_epsilon / sigma, x0 - of_epsilon * alpha / sigma, 0.0, noise]
            assert row.matrix[0] == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(
    ("rows", "order"), [(euler_rows, 1.0), (heun_rows, 2.0), (dpmpp_2m_rows, 2.0)], ids=["euler", "heun", "dpmpp_2m"]
)
def test_a_solver_has_its_order(rows: Callable[[Levels], Rows], order: float) -> None:
    """SCIENCE b.5: slope of the error on [σ_min, σ_max], 24 … 192 steps, against the exact solution
    x(ρ) = μ + (x − μ)·√((s² + ρ²)/(s² + ρ_0²)); at least the order less 0.3."""
    errors = [_error(rows, steps) for steps in (24, 48, 96, 192)]
    slopes = np.diff(np.log(errors)) / -np.log(2)
    assert slopes[-1] > order - 0.3
    assert slopes[-1] < order + 0.5


def _error(rows: Callable[[Levels], Rows], steps: int) -> float:
    """The error at the lowest level, the end never without noise; every row, the last included, of full order."""
    ratio = np.exp(np.linspace(np.log(20.0), np.log(0.05), steps + 1))
    ends = np.append(ratio, [0.01])  # one level more, so that no row is the last
    alpha = 1 / np.sqrt(1 + ends**2)
    levels = Levels(np.zeros(steps + 1), alpha, ends * alpha)
    plan = Plan.of("test", levels, [row for row in rows(levels) if row.step <= steps])
    registers = torch.zeros(1, plan.registers, 1, 1, 1, dtype=torch.float64)
    x_start = 3.0
    registers[:, 0] = alpha[0] * x_start
    for row in range(plan.evaluations):
        if plan.step[row] == steps and not plan.completes(row):
            break  # the first stage of the step beyond
        x = registers[:, 0]
        x0 = believed(x, float(plan.alpha[row]), float(plan.sigma[row]))
        matrices = torch.from_numpy(plan.matrices[row])[None]
        registers = advance(registers, Estimate(x0, torch.zeros_like(x)), torch.zeros_like(x), matrices)
    exact = MU + (x_start - MU) * np.sqrt((S**2 + ratio[-1] ** 2) / (S**2 + ratio[0] ** 2))
    return abs(float(registers[0, 0]) / alpha[steps] - exact)
