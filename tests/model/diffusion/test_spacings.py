"""Noise levels between timesteps: the formulas, their bounds, and what a request chooses of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from diffusers import (
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import AysSchedules
from scipy import stats

from denoised.model.diffusion.grids import SPACINGS, Grid, noise_ratios, ratio_levels
from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.diffusion.noise import BETAS, NoiseSchedule
from denoised.model.diffusion.published_levels import PUBLISHED_LEVELS
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan
from denoised.model.diffusion.spacings import RATIO_SPACINGS, RatioSpacing, beta_quantile
from denoised.model.errors import PlanError
from denoised.model.serving.card_facts import sampler_facts

LINEAR = NoiseSchedule.from_name("linear")
STABLE = NoiseSchedule.from_name("scaled_linear", start=0.00085, end=0.012)
COSINE = NoiseSchedule.from_name("squaredcos_cap_v2")
WITH_SPACING = [sampler for sampler in SAMPLERS if SAMPLERS[sampler].takes_spacing]


def ratios(spacing: RatioSpacing, steps: int, schedule: NoiseSchedule = STABLE, base: str = "linspace") -> Any:
    return ratio_levels(schedule, steps, Grid(base, ratio_spacing=spacing)).ratio[:-1]


@pytest.mark.parametrize("shape", [0.6, 0.3, 1.0, 2.5])
def test_the_quantile_of_the_beta_distribution_is_that_of_scipy(shape: float) -> None:
    q = np.concatenate([np.linspace(0, 1, 501), [1e-12, 1e-6, 1 - 1e-6]])
    found = np.array([beta_quantile(each, shape) for each in q])
    assert found == pytest.approx(stats.beta.ppf(q, shape, shape), rel=1e-12, abs=1e-15)


def test_edm_levels_are_those_of_diffusers_within_the_schedule() -> None:
    """σ from 80 to .002 of Karras et al. 2022, as far as the schedule goes: here .0292 … 14.61, and .01 … 80."""
    for schedule, low, high in ((STABLE, 0.02917, 14.6147), (LINEAR, 0.0100005, 80.0)):
        scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
        found = ratios(RatioSpacing("edm"), 12, schedule)
        assert (found[-1], found[0]) == (pytest.approx(low, rel=1e-3), pytest.approx(high, rel=1e-3))
        scheduler = EDMEulerScheduler(sigma_min=float(found[-1]), sigma_max=float(found[0]))
        scheduler.set_timesteps(12)
        assert found == pytest.approx(scheduler.sigmas[:-1].numpy(), rel=1e-5)


def test_sgm_uniform_is_uniform_in_time_without_its_end() -> None:
    """999, 666, 333 of a thousand timesteps; between timesteps log ρ is linear."""
    table = noise_ratios(STABLE)
    assert ratios(RatioSpacing("sgm_uniform"), 3) == pytest.approx(table[[999, 666, 333]], rel=1e-12)
    levels = ratio_levels(STABLE, 4, Grid("leading", ratio_spacing=RatioSpacing("sgm_uniform")))
    assert levels.t == pytest.approx([999, 749.25, 499.5, 249.75], rel=1e-12)
    assert levels.ratio[1] == pytest.approx(table[749] ** 0.75 * table[750] ** 0.25, rel=1e-12)


@pytest.mark.parametrize(("name", "family"), [("ays_sd", "StableDiffusion"), ("ays_sdxl", "StableDiffusionXL")])
def test_published_levels_are_those_of_diffusers(name: str, family: str) -> None:
    """Ten steps; the first level of the rounded list is a little above the schedule's."""
    published = AysSchedules[f"{family}Sigmas"]
    assert published[-1] == 0
    found = ratios(RatioSpacing(name), 10)
    assert found == pytest.approx(published[:-1], abs=5e-4)
    assert found[1:] == pytest.approx(published[1:-1], rel=1e-12)
    timesteps = AysSchedules[f"{family}Timesteps"]
    assert found == pytest.approx(noise_ratios(STABLE)[timesteps], rel=0.03), "their timesteps are rounded"


@pytest.mark.parametrize("name", PUBLISHED_LEVELS)
def test_published_levels_between_are_linear_in_the_logarithm(name: str) -> None:
    own = ratios(RatioSpacing(name), 10)
    assert ratios(RatioSpacing(name), 5) == pytest.approx(own[::2], rel=1e-12)
    twice = ratios(RatioSpacing(name), 20)
    assert twice[::2] == pytest.approx(own, rel=1e-12)
    assert twice[3:-1:2] == pytest.approx(np.sqrt(own[1:-1] * own[2:]), rel=1e-12)
    assert ratios(RatioSpacing(name), 1) == pytest.approx([noise_ratios(STABLE)[-1]])


@pytest.mark.parametrize("name", PUBLISHED_LEVELS)
@pytest.mark.parametrize("sampler", WITH_SPACING)
def test_every_sampler_takes_published_levels(sampler: str, name: str) -> None:
    for base, steps in product(SPACINGS, (1, 2, 9, 10, 1000)):
        grid = LevelChoice(name).of(Grid(base))
        assert np.isfinite(compile_plan(sampler, STABLE, steps, grid).matrices.astype(np.float32)).all(), (base, steps)
        assert (np.diff(SAMPLERS[sampler].levels(STABLE, steps, grid).ratio) < 0).all(), (base, steps)


@pytest.mark.parametrize(
    "schedule", [LINEAR, COSINE, STABLE.with_zero_terminal_snr()], ids=["linear", "cosine", "zero"]
)
def test_published_levels_are_for_their_schedule_alone(schedule: NoiseSchedule) -> None:
    with pytest.raises(PlanError, match=r"spacing = 'ays_sd' is for noise levels of 0.029 … 14.615 \(the schedule's: "):
        ratios(RatioSpacing("ays_sd"), 10, schedule)
    assert sampler_facts(schedule, Grid())["spacings"] == [*SPACINGS, *RATIO_SPACINGS]
    assert sampler_facts(STABLE, Grid())["spacings"] == [*SPACINGS, *RATIO_SPACINGS, "ays_sd", "ays_sdxl"]


def test_published_levels_take_no_bounds() -> None:
    with pytest.raises(PlanError, match="spacing = 'ays_sdxl' takes no bounds"):
        ratios(RatioSpacing("ays_sdxl", sigma_max=5.0), 10)


def test_geometric_levels_fall_by_one_factor_between_their_bounds() -> None:
    """40 to .1 on schedules that have both; Stable Diffusion's goes up to 14.6."""
    for schedule, high in ((LINEAR, 40.0), (STABLE, 14.6147), (COSINE, 40.0)):
        found = ratios(RatioSpacing("geometric"), 6, schedule)
        assert (found[0], found[-1]) == (pytest.approx(high, rel=1e-5), pytest.approx(0.1, rel=1e-12))
        assert found[1:] / found[:-1] == pytest.approx(np.full(5, found[1] / found[0]), rel=1e-9)
    own = ratios(RatioSpacing("geometric", sigma_min=0.25, sigma_max=4.0), 5)
    assert own == pytest.approx([4, 2, 1, 0.5, 0.25], rel=1e-12)


@pytest.mark.parametrize(
    ("named", "low", "high"),
    [
        ({"sigma_min": 20.0}, 20.0, 40.0),
        ({"sigma_max": 3.0}, 0.1, 3.0),
        ({"sigma_min": 50.0}, 50.0, 157.4073),
        ({"sigma_max": 0.05}, 0.0100005, 0.05),
    ],
)
def test_a_bound_beyond_the_other_one_moves_it_to_the_end_of_the_schedule(named: Any, low: float, high: float) -> None:
    found = ratios(RatioSpacing("geometric", **named), 3, LINEAR)
    assert found[[-1, 0]] == pytest.approx([low, high], rel=1e-4)


@pytest.mark.parametrize("name", ["geometric", "edm"])
@pytest.mark.parametrize(("start", "end"), [(1e-9, 2e-9), (0.9, 0.99)])
def test_a_schedule_on_one_side_of_the_bounds_has_levels_of_its_own(name: str, start: float, end: float) -> None:
    schedule = NoiseSchedule.from_name("linear", 20, start, end)
    found, table = ratios(RatioSpacing(name), 5, schedule), noise_ratios(schedule)
    assert (np.diff(found) < 0).all()
    assert table[0] * (1 - 1e-12) <= found[-1] < found[0] <= table[-1] * (1 + 1e-12)


@pytest.mark.parametrize("name", ["karras", "exponential", "beta"])
def test_the_spacings_of_diffusers_start_at_20_on_steep_schedules(name: str) -> None:
    assert ratios(RatioSpacing(name), 10, COSINE)[0] == pytest.approx(20.0, rel=1e-12)
    assert ratios(RatioSpacing(name, sigma_max=500.0), 10, COSINE)[0] == pytest.approx(500.0, rel=1e-12)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_levels_of_ones_own_are_those_of_diffusers() -> None:
    sigmas = (14.5, 6.0, 2.5, 0.9, 0.3, 0.05)
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(sigmas=[*sigmas, 0.0])
    plan = compile_plan("euler", STABLE, 6, Grid("linspace", ratio_spacing=RatioSpacing(sigmas=sigmas)))
    assert plan.t == pytest.approx(scheduler.timesteps.numpy(), rel=1e-4)
    assert plan.sigma / plan.alpha == pytest.approx(sigmas, rel=1e-12)
    assert plan.initial_scale / plan.alpha[0] == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-6)


@pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (implementation|must):DeprecationWarning")
@pytest.mark.parametrize("name", ["exponential", "beta"])
def test_solvers_of_diffusers_cut_the_times_of_levels(name: str) -> None:
    """Here the network gets them as they are. If this fails, diffusers was changed: compare."""
    for sampler, kind in (("dpmpp_2m", DPMSolverMultistepScheduler), ("unipc", UniPCMultistepScheduler)):
        scheduler = kind(**{f"use_{name}_sigmas": True})
        scheduler.set_timesteps(9)
        ours = compile_plan(sampler, LINEAR, 9, Grid("linspace", ratio_spacing=RatioSpacing(name))).t
        assert scheduler.timesteps.tolist() == np.floor(ours + 1e-3).tolist()
        assert (np.abs(ours - np.round(ours)) > 0.01).any()


def test_every_sampler_visits_levels_of_ones_own() -> None:
    sigmas = (14.5, 6.0, 2.5, 0.9)
    for sampler in WITH_SPACING:
        plan = compile_plan(sampler, STABLE, 4, Grid(ratio_spacing=RatioSpacing(sigmas=sigmas)))
        found = set((plan.sigma / plan.alpha).round(9).tolist())
        assert found >= set(sigmas), sampler
        assert plan.steps == 4
    for sampler in ("heun", "dpm_2", "dpmpp_sde"):  # also above the level at which they start otherwise
        plan = compile_plan(sampler, COSINE, 2, Grid(ratio_spacing=RatioSpacing(sigmas=(300.0, 1.0))))
        assert plan.sigma[0] / plan.alpha[0] == pytest.approx(300.0, rel=1e-12)


@pytest.mark.parametrize("sampler", WITH_SPACING)
@pytest.mark.parametrize("name", RATIO_SPACINGS)
def test_every_sampler_takes_every_spacing(sampler: str, name: str) -> None:
    """Finite rows at falling levels that end without noise, exact where the data are a single point."""
    for schedule, base, steps in product((LINEAR, COSINE), ("trailing", "leading"), (1, 2, 7)):
        plan = compile_plan(sampler, schedule, steps, Grid(base, ratio_spacing=RatioSpacing(name)))
        assert plan.steps == steps
        assert np.isfinite(plan.matrices).all()
        assert (np.diff(plan.sigma / plan.alpha) <= 0).all()
        assert not plan.draws_noise(plan.evaluations - 1)
        registers = np.zeros(plan.registers)
        registers[0] = 1.3 * plan.initial_scale
        for alpha, sigma, matrix in zip(plan.alpha, plan.sigma, plan.matrices, strict=True):
            registers = matrix @ [*registers, 0.3, (registers[0] - alpha * 0.3) / sigma, 0.0]
        assert registers[0] == pytest.approx(0.3, abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", RATIO_SPACINGS)
@pytest.mark.parametrize("schedule", BETAS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_levels_fall_for_every_number_of_steps(name: str, schedule: str, zero_snr: bool) -> None:
    noise = NoiseSchedule.from_name(schedule)
    noise = noise.with_zero_terminal_snr() if zero_snr else noise
    for sampler, base, steps in product(("ddim", "euler", "heun", "dpm_2", "unipc"), SPACINGS, (*range(1, 40), 1000)):
        levels = SAMPLERS[sampler].levels(noise, steps, Grid(base, ratio_spacing=RatioSpacing(name)))
        assert (np.diff(levels.ratio) < 0).all(), (sampler, base, steps)
        assert (np.diff(levels.t) < 0).all(), (sampler, base, steps)


@pytest.mark.parametrize(
    ("spacing", "steps", "message"),
    [
        (RatioSpacing(sigmas=(1.0, 2.0)), 2, "sigmas are not 2 falling values within"),
        (RatioSpacing(sigmas=(2.0, 2.0)), 2, "sigmas are not 2 falling values"),
        (RatioSpacing(sigmas=(2.0, 1.0)), 3, "sigmas are not 3 falling values"),
        (RatioSpacing(sigmas=(200.0, 1.0)), 2, "sigmas are not 2 falling values"),
        (RatioSpacing(sigmas=(2.0, 0.0)), 2, "sigmas are not 2 falling values"),
        (RatioSpacing("karras", sigma_max=200.0), 5, "and sigma_max = 200 do not rise by a factor of 1.01 within"),
        (RatioSpacing("geometric", sigma_min=3.0, sigma_max=2.0), 5, "sigma_min = 3 and sigma_max = 2 do not rise"),
        (RatioSpacing("sgm_uniform", sigma_min=1.0), 5, "spacing = 'sgm_uniform' takes no bounds"),
        (RatioSpacing(sigmas=(2.0, 2.0 - 1e-12)), 2, "sigmas are not 2 falling values"),
        (RatioSpacing("beta", sigma_min=2.0, sigma_max=2.0 + 1e-12), 300, "do not rise by a factor of 1.01"),
        (RatioSpacing("exponential", sigma_max=float(noise_ratios(STABLE)[0]) * (1 + 1e-12)), 5, "do not rise by a"),
        (RatioSpacing("random"), 5, "spacing = 'random' takes no bounds"),
    ],
)
def test_levels_that_a_schedule_does_not_have_are_refused(spacing: RatioSpacing, steps: int, message: str) -> None:
    for sampler in ("ddim", "euler", "unipc"):
        with pytest.raises(PlanError, match=message):
            compile_plan(sampler, STABLE, steps, Grid("linspace", ratio_spacing=spacing))


STEEP = NoiseSchedule.from_name("linear", 100, 0.3, 0.5)  # goes up to ρ = 7e11


@pytest.mark.parametrize("sampler", WITH_SPACING)
def test_every_spacing_falls_and_is_finite_on_schedules_of_any_kind(sampler: str) -> None:
    """Also where all timesteps of the grid lie above the cap of a steep schedule: then two levels were equal."""
    sources = (LINEAR, COSINE, STEEP, NoiseSchedule.from_name("sigmoid", 37), NoiseSchedule.from_name("linear", 10))
    for schedule, zero, name, base in product(sources, (False, True), RATIO_SPACINGS, SPACINGS):
        noise = schedule.with_zero_terminal_snr() if zero else schedule
        for steps in (1, 2, 9):
            plan = compile_plan(sampler, noise, steps, Grid(base, ratio_spacing=RatioSpacing(name)))
            assert np.isfinite(plan.matrices.astype(np.float32)).all(), (name, base, steps, zero)
            levels = SAMPLERS[sampler].levels(noise, steps, Grid(base, ratio_spacing=RatioSpacing(name)))
            assert (np.diff(levels.ratio) < 0).all(), (name, base, steps, zero)


def test_1000_levels_between_the_closest_bounds_make_finite_plans() -> None:
    for name, sampler in product(("karras", "exponential", "beta"), ("ddpm", "unipc_3", "dpmpp_2m_sde", "dpmpp_3m")):
        grid = Grid(ratio_spacing=RatioSpacing(name, sigma_min=2.0, sigma_max=2.0 * 1.01))
        assert np.isfinite(compile_plan(sampler, LINEAR, 1000, grid).matrices.astype(np.float32)).all(), (name, sampler)


@pytest.mark.parametrize(
    ("sampler", "schedule", "grid", "spacing"),
    [
        ("dpmpp_2m", LINEAR, Grid(lambda_min=-1.0), RatioSpacing("karras", sigma_max=5.0)),
        ("unipc", LINEAR, Grid(lambda_min=-1.0), RatioSpacing(sigmas=(50.0, 5.0, 0.5))),
        ("heun", COSINE, Grid(), RatioSpacing("exponential", sigma_min=30.0)),
        ("dpmpp_sde", COSINE, Grid(), RatioSpacing("beta", sigma_min=30.0)),
    ],
)
def test_a_named_level_is_visited_where_the_sampler_leaves_out_such_timesteps(
    sampler: str, schedule: NoiseSchedule, grid: Grid, spacing: RatioSpacing
) -> None:
    """The API accepts every level of the model's schedule; these failed in the worker."""
    plan = compile_plan(sampler, schedule, 3, replace(grid, ratio_spacing=spacing))
    ratio = plan.sigma / plan.alpha
    named = spacing.sigmas[0] if spacing.sigmas else spacing.sigma_max or spacing.sigma_min
    assert ratio[-1 if spacing.sigma_min else 0] == pytest.approx(named, rel=1e-12)


KARRAS, BETA = RatioSpacing("karras"), RatioSpacing("beta")


@pytest.mark.parametrize(
    ("own", "choice", "expected"),
    [
        (Grid("leading"), LevelChoice(), Grid("leading")),
        (Grid("leading"), LevelChoice("trailing"), Grid("trailing")),
        (Grid("leading"), LevelChoice("karras"), Grid("leading", ratio_spacing=KARRAS)),
        (Grid("leading"), LevelChoice(karras=True), Grid("leading", ratio_spacing=KARRAS)),
        (Grid("leading"), LevelChoice("trailing", karras=True), Grid("trailing", ratio_spacing=KARRAS)),
        (Grid("leading", ratio_spacing=KARRAS), LevelChoice(), Grid("leading", ratio_spacing=KARRAS)),
        (Grid("leading", ratio_spacing=KARRAS), LevelChoice(karras=False), Grid("leading")),
        (Grid("leading", ratio_spacing=KARRAS), LevelChoice("trailing"), Grid("trailing", ratio_spacing=KARRAS)),
        (Grid("leading", ratio_spacing=BETA), LevelChoice(), Grid("leading", ratio_spacing=BETA)),
        (Grid("leading", ratio_spacing=BETA), LevelChoice(karras=False), Grid("leading", ratio_spacing=BETA)),
        (Grid("leading", ratio_spacing=BETA), LevelChoice("trailing"), Grid("trailing")),
        (Grid("leading", ratio_spacing=KARRAS), LevelChoice("beta"), Grid("leading", ratio_spacing=BETA)),
        (Grid(), LevelChoice("edm", sigma_max=5.0), Grid(ratio_spacing=RatioSpacing("edm", sigma_max=5.0))),
        (Grid(), LevelChoice(sigmas=(2.0, 1.0)), Grid(ratio_spacing=RatioSpacing(sigmas=(2.0, 1.0)))),
    ],
)
def test_a_request_chooses_the_levels_and_leaves_the_rest_to_the_model(
    own: Grid, choice: LevelChoice, expected: Grid
) -> None:
    assert choice.of(own) == expected


def test_a_choice_that_means_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match=r"spacing = 'random' is not supported .supported: leading, .*geometric, sgm"):
        LevelChoice("random").of(Grid())
    with pytest.raises(PlanError, match="sigma_min and sigma_max need a spacing of levels"):
        LevelChoice("trailing", sigma_min=1.0).of(Grid())
