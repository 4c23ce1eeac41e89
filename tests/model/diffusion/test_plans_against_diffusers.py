"""Runs of our plans against runs of diffusers' schedulers, and against the targets of diffusers' own tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from denoised.model.diffusion.clipping import Clipping
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan, advance
from denoised.model.diffusion.predictions import Estimate, estimate_from_output
from denoised.model.diffusion.samplers import compile_plan

LINEAR = NoiseSchedule.from_name("linear")
MU, S = 0.3, 0.5
Network = Callable[[Tensor, float], Tensor]


def ideal(x: Tensor, t: float) -> Tensor:
    """ε* for data N(.3, .5²) (mathematics.md, closed forms)."""
    alpha, sigma = LINEAR.alpha[int(t)], LINEAR.sigma[int(t)]
    return sigma * (x - alpha * MU) / (alpha**2 * S**2 + sigma**2)


def harness(x: Tensor, t: float) -> Tensor:
    """The "model" of diffusers' scheduler tests."""
    return x * t / (t + 1)


def follow(
    plan: Plan, network: Network, x: Tensor, clipping: Clipping, seed: int = 0, prediction_type: str = "epsilon"
) -> Tensor:
    """Run a plan on a batch; fresh noise for the whole batch from one generator, as diffusers' tests draw it."""
    generator = torch.Generator().manual_seed(seed)
    registers = x[:, None]
    for row in range(plan.evaluations):
        x = registers[:, 0]
        alpha, sigma = (torch.full((len(x),), float(level[row]), dtype=x.dtype) for level in (plan.alpha, plan.sigma))
        read = estimate_from_output(network(x, float(plan.t[row])), x, alpha, sigma, prediction_type)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype) if plan.draws_noise(row) else torch.zeros_like(x)
        matrices = torch.from_numpy(plan.matrices[row]).to(x.dtype).expand(len(x), -1, -1)
        unguided = torch.zeros(len(x), dtype=torch.bool)
        registers = advance(registers, clipping(read, x, alpha, sigma, unguided), z, matrices)
    return registers[:, 0]


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(7), dtype=dtype)


def use_exact_alphas(scheduler: DDIMScheduler | DDPMScheduler) -> None:
    """Give a diffusers scheduler its ᾱ in float64: its own are off by 1.66e-4 in 1 − ᾱ (mathematics.md, trap 19)."""
    scheduler.alphas_cumprod = torch.from_numpy(LINEAR.alpha**2)


def diffusers_ddim(
    steps: int, spacing: str, eta: float, clip: bool = False, offset: int = 0, stock: bool = False
) -> Tensor:
    scheduler = DDIMScheduler(timestep_spacing=spacing, clip_sample=clip, steps_offset=offset)
    if not stock:
        use_exact_alphas(scheduler)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = start()
    for t in scheduler.timesteps:
        x = scheduler.step(ideal(x, float(t)), t, x, eta=eta, generator=generator).prev_sample
    return x


def diffusers_ddpm(steps: int, spacing: str, variance_type: str, clip: bool = False) -> Tensor:
    scheduler = DDPMScheduler(timestep_spacing=spacing, clip_sample=clip, variance_type=variance_type)
    use_exact_alphas(scheduler)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = start()
    for t in scheduler.timesteps:
        x = scheduler.step(ideal(x, float(t)), t, x, generator=generator).prev_sample
    return x


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("steps", "spacing"), [(10, "leading"), (50, "leading"), (10, "trailing"), (50, "trailing")])
@pytest.mark.parametrize("clip", [False, True])
def test_a_ddim_run_ends_where_diffusers_ends(steps: int, spacing: str, eta: float, clip: bool) -> None:
    """mathematics.md, closed forms: diffusers agrees for leading, and for trailing with N | T."""
    plan = compile_plan("ddim", LINEAR, steps, Grid(spacing), eta)
    ours = follow(plan, ideal, start(), Clipping(1.0 if clip else None))
    torch.testing.assert_close(ours, diffusers_ddim(steps, spacing, eta, clip), rtol=0, atol=1e-9)
    if eta == 0.0:
        torch.testing.assert_close(ours, diffusers_ddim(steps, spacing, eta, clip, stock=True), rtol=0, atol=1e-5)


def test_a_leading_grid_with_an_offset_ends_where_diffusers_ends() -> None:
    plan = compile_plan("ddim", LINEAR, 20, Grid("leading", steps_offset=1))
    ours = follow(plan, ideal, start(), Clipping(None))
    torch.testing.assert_close(ours, diffusers_ddim(20, "leading", 0.0, offset=1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("steps", "spacing"), [(10, "leading"), (50, "leading"), (200, "leading")])
@pytest.mark.parametrize("clip", [False, True])
def test_a_ddpm_run_ends_where_diffusers_ends(steps: int, spacing: str, variance_type: str, clip: bool) -> None:
    plan = compile_plan("ddpm", LINEAR, steps, Grid(spacing, variance_type=variance_type))
    ours = follow(plan, ideal, start(), Clipping(1.0 if clip else None))
    torch.testing.assert_close(ours, diffusers_ddpm(steps, spacing, variance_type, clip), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("steps", "spacing"), [(10, "linspace"), (50, "linspace"), (13, "trailing"), (30, "trailing")])
def test_the_previous_timestep_is_right_where_that_of_diffusers_is_wrong(steps: int, spacing: str) -> None:
    """mathematics.md, trap 1: diffusers 0.42.1 goes to t − T//N. If this fails, diffusers was fixed: compare."""
    plan = compile_plan("ddim", LINEAR, steps, Grid(spacing))
    ours = follow(plan, ideal, start(), Clipping(None))
    theirs = diffusers_ddim(steps, spacing, 0.0)
    assert (ours - theirs).abs().max() > 1e-3


def checkerboard() -> Tensor:
    """The deterministic sample of diffusers' scheduler tests (mathematics.md, scheduler targets)."""
    return (torch.arange(768).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)


def sums(x: Tensor) -> tuple[float, float]:
    return float(x.abs().sum()), float(x.abs().mean())


@pytest.mark.parametrize(
    ("prediction_type", "total", "mean"), [("epsilon", 258.9606, 0.3372), ("v_prediction", 202.0296, 0.2631)]
)
def test_a_thousand_ddpm_steps_give_the_target_of_the_diffusers_tests(
    prediction_type: str, total: float, mean: float
) -> None:
    """mathematics.md, scheduler targets: DDPM, fixed_small, clipped, seed 0; Σ|x| to 1e-2, mean to 1e-3."""
    plan = compile_plan("ddpm", LINEAR, 1000, Grid())
    x = follow(plan, harness, checkerboard(), Clipping(1.0), 0, prediction_type)
    assert sums(x) == (pytest.approx(total, abs=1e-2), pytest.approx(mean, abs=1e-3))


@pytest.mark.parametrize(
    ("prediction_type", "total", "mean"), [("epsilon", 172.0067, 0.223967), ("v_prediction", 52.5302, 0.0684)]
)
def test_ten_ddim_steps_give_the_target_of_the_diffusers_tests(prediction_type: str, total: float, mean: float) -> None:
    """mathematics.md, scheduler targets: DDIM, 10 steps, clipping that leaves ε̂ the network's own (trap 10)."""
    plan = compile_plan("ddim", LINEAR, 10, Grid())
    x = follow(plan, harness, checkerboard(), Clipping(1.0), 0, prediction_type)
    assert sums(x) == (pytest.approx(total, abs=1e-2), pytest.approx(mean, abs=1e-3))


@pytest.mark.parametrize(("one", "total"), [(True, 149.8295), (False, 149.0784)])
def test_the_last_level_gives_the_target_of_the_diffusers_tests(one: bool, total: float) -> None:
    """mathematics.md, scheduler targets, trap 5: β_start .01, set_alpha_to_one True and False."""
    schedule = NoiseSchedule.from_name("linear", start=0.01)
    plan = compile_plan("ddim", schedule, 10, Grid(set_alpha_to_one=one))
    assert sums(follow(plan, harness, checkerboard(), Clipping(1.0)))[0] == pytest.approx(total, abs=1e-2)


def test_ten_trailing_ddim_steps_give_the_computed_target() -> None:
    """mathematics.md, scheduler targets, computed: DDIM trailing 170.0350."""
    plan = compile_plan("ddim", LINEAR, 10, Grid("trailing"))
    assert sums(follow(plan, harness, checkerboard(), Clipping(1.0)))[0] == pytest.approx(170.0350, abs=1e-2)


def test_the_published_variances_of_ancestral_steps() -> None:
    """mathematics.md, scheduler targets: fixed_small, the squares of the z column."""
    noise = compile_plan("ddpm", LINEAR, 1000, Grid()).matrices[::-1, 0, -1] ** 2
    assert noise[0] == 0
    assert noise[[487, 999]] == pytest.approx([0.00979, 0.02], abs=1e-5)


@pytest.mark.parametrize("registers", [1, 2, 4])
def test_advancing_a_batch_gives_the_bits_of_advancing_each_image_alone(registers: int) -> None:
    """Same seed, same bytes: no reduction over the batch, sums in a fixed order."""
    generator = torch.Generator().manual_seed(registers)
    count, shape = 7, (3, 5, 5)
    kept = torch.randn(count, registers, *shape, generator=generator)
    x0, epsilon, z = (torch.randn(count, *shape, generator=generator) for _ in range(3))
    matrices = torch.randn(count, registers, registers + 3, generator=generator)
    whole = advance(kept, Estimate(x0, epsilon), z, matrices)
    expected = torch.einsum("bij,bj...->bi...", matrices, torch.cat([kept, *(y[:, None] for y in (x0, epsilon, z))], 1))
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)
    columns = [*kept.unbind(1), x0, epsilon, z]
    for i in range(registers):
        total = matrices[:, i, 0, None, None, None] * columns[0]
        for j in range(1, registers + 3):
            total = total + matrices[:, i, j, None, None, None] * columns[j]
        assert torch.equal(whole[:, i], total), "products and sums are rounded one by one, from the first column on"
    for k in range(count):
        row = slice(k, k + 1)
        alone = advance(kept[row], Estimate(x0[row], epsilon[row]), z[row], matrices[row])
        assert torch.equal(whole[row], alone)


def test_a_neighbor_that_is_not_finite_does_not_change_an_image() -> None:
    x = torch.ones(2, 1, 1, 2, 2)
    estimate_ = Estimate(torch.tensor([1.0, float("nan")]).view(2, 1, 1, 1).expand(2, 1, 2, 2), torch.ones(2, 1, 2, 2))
    matrices = torch.full((2, 1, 4), 0.5)
    out = advance(x, estimate_, torch.zeros(2, 1, 2, 2), matrices)
    assert torch.equal(out[0], torch.full((1, 1, 2, 2), 1.5))
