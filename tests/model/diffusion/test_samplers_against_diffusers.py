"""The solvers other than DDPM and DDIM against diffusers' schedulers of the same name."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from denoised.model.diffusion.grids import Grid, Levels, solver_levels
from denoised.model.diffusion.multistep import dpmpp_3m_rows
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan, advance
from denoised.model.diffusion.predictions import Estimate
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan
from denoised.model.diffusion.singlestep import ddim_rows, euler_a_rows, euler_rows
from denoised.model.diffusion.spacings import RatioSpacing
from tests.pairs import every_pair

# diffusers 0.42.1 converts tensors to numpy arrays in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (implementation|must):DeprecationWarning")

KARRAS = RatioSpacing("karras")
LINEAR = NoiseSchedule.from_name("linear")
MU, S = 0.3, 0.5
SCHEDULERS = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpm_2": (KDPM2DiscreteScheduler, {}),
    "lms": (LMSDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2}),
    "unipc_3": (UniPCMultistepScheduler, {"solver_order": 3}),
    "dpmpp_3m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
}
STOCHASTIC = (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler)
SPACINGS = ("leading", "trailing", "linspace")
LEVELS = ("karras", "exponential", "beta")
SAME = [sampler for sampler in SCHEDULERS if sampler != "dpmpp_3m"]


def ideal_x0(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """x̂_0 of the ideal network for data N(.3, .5²) (mathematics.md, closed forms)."""
    return (alpha * S**2 * x + sigma**2 * MU) / (alpha**2 * S**2 + sigma**2)


def follow(plan: Plan, x: Tensor) -> Tensor:
    """Run a plan with the ideal network, in float64; diffusers draws the noise of its SDE solver in float32."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.float32 if plan.sampler == "dpmpp_2m_sde" else x.dtype
    registers = torch.zeros(len(x), plan.registers, *x.shape[1:], dtype=x.dtype)
    registers[:, 0] = plan.initial_scale * x
    for row in range(plan.evaluations):
        x = registers[:, 0]
        alpha, sigma = float(plan.alpha[row]), float(plan.sigma[row])
        x0 = ideal_x0(x, alpha, sigma)
        z = torch.randn(x.shape, generator=generator, dtype=drawn) if plan.draws_noise(row) else torch.zeros(x.shape)
        matrices = torch.from_numpy(plan.matrices[row]).expand(len(x), -1, -1)
        registers = advance(registers, Estimate(x0, (x - alpha * x0) / sigma), z.to(x.dtype), matrices)
    return registers[:, 0]


def diffusers_run(sampler: str, steps: int, spacing: str, x: Tensor, levels: str | None = None) -> Tensor:
    """The run by diffusers with ᾱ in float64, in the scale x/α for the classes that use it."""
    kind, options = SCHEDULERS[sampler]
    more = {f"use_{levels}_sigmas": True} if levels is not None else {}
    betas = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    scheduler = kind(timestep_spacing=spacing, **betas, **options, **more)
    scheduler.alphas_cumprod = torch.from_numpy(LINEAR.alpha**2)
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        x_t = scheduler.scale_model_input(x, t)
        between = sampler == "dpm_2" and not scheduler.state_in_first_order
        ratio = float((scheduler.sigmas_interpol if between else scheduler.sigmas)[scheduler.step_index or 0])
        alpha = 1 / np.sqrt(1 + ratio**2)
        sigma = ratio * alpha
        epsilon = (x_t - alpha * ideal_x0(x_t, alpha, sigma)) / sigma
        drawn = {"generator": generator} if SCHEDULERS[sampler][0] in STOCHASTIC else {}
        x = scheduler.step(epsilon, t, x, **drawn).prev_sample
    return x


def start() -> Tensor:
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize(("sampler", "spacing", "steps"), every_pair(SAME, SPACINGS, [5, 20, 50]))
def test_a_run_ends_where_diffusers_ends(sampler: str, spacing: str, steps: int) -> None:
    """1e-5 over whole runs; diffusers rounds its noise levels to float32."""
    ours = follow(compile_plan(sampler, LINEAR, steps, Grid(spacing)), start())
    torch.testing.assert_close(ours, diffusers_run(sampler, steps, spacing, start()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "levels", "spacing", "steps"),
    every_pair([sampler for sampler in SAME if sampler != "euler_a"], LEVELS, SPACINGS, [7, 12]),
)
def test_a_run_on_levels_between_timesteps_ends_where_diffusers_ends(
    sampler: str, levels: str, spacing: str, steps: int
) -> None:
    """Every class with these switches; their ends depend on the timesteps in some classes and not in others."""
    ours = follow(compile_plan(sampler, LINEAR, steps, Grid(spacing, ratio_spacing=RatioSpacing(levels))), start())
    theirs = diffusers_run(sampler, steps, spacing, start(), levels=levels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 20, 50])
def test_plms_ends_where_pndm_without_runge_kutta_steps_ends(steps: int, offset: int, set_alpha_to_one: bool) -> None:
    """Leading spacing, where diffusers' t − T//N is the next timestep; one step of diffusers' repeats no evaluation."""
    betas = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "set_alpha_to_one": set_alpha_to_one}
    scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=offset, **betas)
    scheduler.alphas_cumprod = torch.from_numpy(LINEAR.alpha**2)
    scheduler.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    x = start()
    for t in scheduler.timesteps:
        alpha, sigma = float(LINEAR.alpha[t]), float(LINEAR.sigma[t])
        x = scheduler.step((x - alpha * ideal_x0(x, alpha, sigma)) / sigma, t, x).prev_sample
    plan = compile_plan("plms", LINEAR, steps, Grid("leading", steps_offset=offset, set_alpha_to_one=set_alpha_to_one))
    assert plan.t.tolist() == scheduler.timesteps.tolist()
    assert plan.evaluations == (steps + 1 if steps > 1 else 1)
    torch.testing.assert_close(follow(plan, start()), x, rtol=0, atol=1e-9)


class Brownian:
    """The Brownian motion of diffusers' class, without its dependency torchsde: two draws for each step."""

    def __init__(self, x: Tensor) -> None:
        self._like, self._generator = x, torch.Generator().manual_seed(0)
        self._first: Tensor | None = None
        self._middle = 0.0

    def __call__(self, ratio: Tensor, ratio_end: Tensor) -> Tensor:
        z = torch.randn(self._like.shape, generator=self._generator, dtype=self._like.dtype)
        if self._first is None:
            self._first, self._middle = z, float(ratio_end)
            return z
        parts = (float(ratio) - self._middle, self._middle - float(ratio_end))
        both = sum(part**0.5 * w for part, w in zip(parts, (self._first, z), strict=True))
        self._first = None
        return both / sum(parts) ** 0.5


def dpmpp_sde_of_diffusers(monkeypatch: pytest.MonkeyPatch, steps: int, **settings: Any) -> Tensor:
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    kind = import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
    scheduler = kind(beta_start=1e-4, beta_end=0.02, **settings)
    scheduler.alphas_cumprod = torch.from_numpy(LINEAR.alpha**2)
    scheduler.set_timesteps(steps)
    x = start() * scheduler.init_noise_sigma
    scheduler.noise_sampler = Brownian(x)
    for t in scheduler.timesteps:
        x_t = scheduler.scale_model_input(x, t)
        at_middle = not scheduler.state_in_first_order
        ratio = float(scheduler.mid_point_sigma if at_middle else scheduler.sigmas[scheduler.step_index or 0])
        alpha = 1 / np.sqrt(1 + ratio**2)
        epsilon = (x_t - alpha * ideal_x0(x_t, alpha, ratio * alpha)) / (ratio * alpha)
        x = scheduler.step(epsilon, t, x).prev_sample
    return x


@pytest.mark.parametrize(("steps", "spacing", "levels"), every_pair([1, 2, 5, 20], SPACINGS, [None, *LEVELS]))
def test_dpmpp_sde_ends_where_diffusers_ends_with_the_same_brownian_motion(
    spacing: str, steps: int, levels: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (spacing, steps) == ("linspace", 1):
        return  # test_one_step_starts_at_pure_noise_where_diffusers_starts_near_the_image
    switch = {} if levels is None else {f"use_{levels}_sigmas": True}
    theirs = dpmpp_sde_of_diffusers(monkeypatch, steps, timestep_spacing=spacing, **switch)
    ours = follow(
        compile_plan("dpmpp_sde", LINEAR, steps, Grid(spacing, ratio_spacing=RatioSpacing(levels) if levels else None)),
        start(),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


TURBO = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "trailing"}


@pytest.mark.parametrize("sampler", ["euler", "euler_a"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_few_trailing_steps_of_turbo_models_end_where_diffusers_ends(sampler: str, steps: int) -> None:
    """The files of SD-Turbo and SDXL-Turbo; one step is from the last timestep to x̂_0."""
    schedule = NoiseSchedule.from_name("scaled_linear", start=0.00085, end=0.012)
    scheduler = SCHEDULERS[sampler][0](**TURBO)
    scheduler.alphas_cumprod = torch.from_numpy(schedule.alpha**2)
    scheduler.set_timesteps(steps)
    generator, x = torch.Generator().manual_seed(0), start() * scheduler.init_noise_sigma
    for k, t in enumerate(scheduler.timesteps):
        ratio = float(scheduler.sigmas[k])
        alpha = 1 / np.sqrt(1 + ratio**2)
        x_t = scheduler.scale_model_input(x, t)
        epsilon = (x_t - alpha * ideal_x0(x_t, alpha, ratio * alpha)) / (ratio * alpha)
        x = scheduler.step(epsilon, t, x, generator=generator).prev_sample
    plan = compile_plan(sampler, schedule, steps, Grid("trailing"))
    assert plan.t[0] == 999
    torch.testing.assert_close(follow(plan, start()), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [8, 20])
def test_the_third_order_multistep_solver_of_diffusers_halves_its_second_difference(steps: int) -> None:
    """mathematics.md, trap 46: with D_2 in place of 2·D_2 our rows end where diffusers 0.42.1 ends; with 2·D_2
    they do not (test_orders.py has the orders, 2 and 3). If this fails, diffusers was fixed: compare."""
    levels = solver_levels(LINEAR, steps, Grid("linspace"))
    published = follow(Plan.from_rows("dpmpp_3m", levels, dpmpp_3m_rows(levels, curvature=1.0)), start())
    theirs = diffusers_run("dpmpp_3m", steps, "linspace", start())
    torch.testing.assert_close(published, theirs, rtol=0, atol=1e-5)
    ours = follow(compile_plan("dpmpp_3m", LINEAR, steps, Grid("linspace")), start())
    assert (ours - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "heun", "dpm_2", "lms"])
def test_one_step_starts_at_pure_noise_where_diffusers_starts_near_the_image(sampler: str) -> None:
    """linspace with N = 1: diffusers 0.42.1 takes t = 0, the first of linspace(0, 999, 1). If this fails: compare."""
    kind, _ = SCHEDULERS[sampler]
    theirs = kind(timestep_spacing="linspace")
    theirs.set_timesteps(1)
    assert float(theirs.timesteps[0]) == 0.0
    assert compile_plan(sampler, LINEAR, 1, Grid("linspace")).t.tolist() == [999.0]


def harness_total(sampler: str) -> float:
    """Σ|x| after ten steps of the "model" x·t/(t + 1), as in diffusers' own scheduler tests."""
    plan = compile_plan(sampler, LINEAR, 10, Grid("linspace"))
    x = (torch.arange(768).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2).double()
    registers = torch.zeros(len(x), plan.registers, *x.shape[1:], dtype=x.dtype)
    registers[:, 0] = plan.initial_scale * x
    for row in range(plan.evaluations):
        x, t = registers[:, 0], float(plan.t[row])
        epsilon = x * t / (t + 1)
        x0 = (x - float(plan.sigma[row]) * epsilon) / float(plan.alpha[row])
        matrices = torch.from_numpy(plan.matrices[row]).expand(len(x), -1, -1)
        registers = advance(registers, Estimate(x0, epsilon), torch.zeros_like(x), matrices)
    return float(registers[:, 0].abs().sum())


@pytest.mark.parametrize(
    ("sampler", "total"),
    [("euler", 169.4608), ("lms", 192.0219), ("dpmpp_2m", 185.0114), ("unipc", 186.7620), ("unipc_3", 187.5004)],
)
def test_ten_steps_give_the_computed_target(sampler: str, total: float) -> None:
    """mathematics.md, scheduler targets, computed with diffusers 0.42.1."""
    assert harness_total(sampler) == pytest.approx(total, abs=2e-2)


def test_forty_karras_levels_are_distinct() -> None:
    """mathematics.md, trap 37: levels are identified by index, not by a rounded timestep."""
    for sampler in ("euler", "dpmpp_2m"):
        plan = compile_plan(sampler, LINEAR, 40, Grid("linspace", ratio_spacing=KARRAS))
        assert plan.evaluations == 40
        assert (np.diff(plan.sigma / plan.alpha) < 0).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_any_number_of_steps_gives_a_finite_plan_at_falling_levels(sampler: str, spacing: str) -> None:
    """mathematics.md, traps 7 and 9: every N of 1 … T has N steps, at falling levels, with finite rows."""
    for steps in (1, 2, 3, 7, 13, 500, 501, 999, 1000):
        plan = compile_plan(sampler, LINEAR, steps, Grid(spacing))
        assert plan.steps == steps
        assert np.isfinite(plan.matrices).all()
        levels = [plan.sigma[row] for row in range(plan.evaluations) if row == 0 or plan.t[row] != plan.t[row - 1]]
        assert len(levels) == (2 * steps - 1 if sampler in ("dpm_2", "dpmpp_sde") else steps)
        assert (np.diff(levels) < 0).all()


def test_the_cosine_schedule_is_finite_up_to_its_last_timestep() -> None:
    """mathematics.md, traps 19 and 39."""
    cosine = NoiseSchedule.from_name("squaredcos_cap_v2")
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
