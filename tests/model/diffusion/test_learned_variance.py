"""Networks that predict the variance of the reverse step in a second half of their channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan, apply_learned_variance
from denoised.model.diffusion.samplers import compile_plan
from denoised.model.errors import CheckpointError
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.serving.loading import load_model
from denoised.model.serving.sampling import sample

LINEAR = NoiseSchedule.from_name("linear")


def noise_std(plan: Plan, row: int, variance_output: float) -> float:
    """The standard deviation of the noise that a row adds for a variance output of `variance_output`."""
    log_variance_range = torch.tensor([plan.log_variance_range[row]])
    z = apply_learned_variance(
        torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.full((1, 1, 1, 1), variance_output), log_variance_range
    )
    return float(z) * float(plan.matrices[row, 0, -1])


@pytest.mark.parametrize(("steps", "spacing"), [(1000, "leading"), (50, "leading"), (13, "trailing")])
def test_a_learned_range_interpolates_between_the_two_log_variances(steps: int, spacing: str) -> None:
    """mathematics.md, trap 12: learned_range: v = −1 → log β̃, v = +1 → log β; on any sub-grid, with its own β."""
    learned, small, large = (
        compile_plan("ddpm", LINEAR, steps, Grid(spacing, variance_type=kind))
        for kind in ("learned_range", "fixed_small", "fixed_large")
    )
    for row in range(0, steps - 1, max(1, steps // 7)):
        lower, upper = small.matrices[row, 0, -1], large.matrices[row, 0, -1]
        assert noise_std(learned, row, 0.0) == pytest.approx(lower, rel=1e-6)
        assert noise_std(learned, row, 1.0) == pytest.approx(upper, rel=1e-6)
        assert noise_std(learned, row, 0.5) == pytest.approx(np.sqrt(lower * upper), rel=1e-6)
    assert noise_std(learned, steps - 1, 1.0) == 0.0


def test_a_learned_variance_is_the_log_variance() -> None:
    """mathematics.md, trap 12: "learned" is log σ² (Nichol & Dhariwal 2021); diffusers 0.42.1 takes it as σ²."""
    plan = compile_plan("ddpm", LINEAR, 10, Grid(variance_type="learned"))
    assert noise_std(plan, 3, float(np.log(0.04))) == pytest.approx(0.2, rel=1e-6)
    assert noise_std(plan, 9, 5.0) == 0.0


@pytest.fixture
def learned(conditional: UNetConfig) -> UNetConfig:
    return dataclasses.replace(conditional, out_channels=2)


def test_a_run_with_a_learned_range_ends_where_diffusers_ends(folder: Callable[..., Path], learned: UNetConfig) -> None:
    """One gray channel in, two out (mathematics.md, trap 13: the split is by C, not by three)."""
    path = folder(learned, variance_type="learned_range", timestep_spacing="leading")
    ours = sample(load_model(path), [1], seed=5, sampler="ddpm", steps=12)
    net = UNet2DModel.from_pretrained(path / "unet")
    scheduler = DDPMScheduler(variance_type="learned_range", beta_schedule="linear")
    scheduler.alphas_cumprod = torch.from_numpy(NoiseSchedule.from_name("linear").alpha ** 2)  # trap 19
    scheduler.set_timesteps(12)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 1, 8, 8, generator=generator)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t, torch.tensor([1])).sample, t, x, generator=generator).prev_sample
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m", "heun"])
def test_the_other_samplers_ignore_the_variance_output(
    folder: Callable[..., Path], learned: UNetConfig, sampler: str
) -> None:
    model = load_model(folder(learned, variance_type="learned_range"))
    before = sample(model, [0, None], sampler=sampler, steps=4, guidance_scale=2.0)
    with torch.no_grad():
        model.unet.conv_out.bias[1] += 5.0
    assert torch.equal(before, sample(model, [0, None], sampler=sampler, steps=4, guidance_scale=2.0))


def test_the_variance_output_changes_ancestral_sampling(folder: Callable[..., Path], learned: UNetConfig) -> None:
    model = load_model(folder(learned, variance_type="learned_range"))
    before = sample(model, [0], sampler="ddpm", steps=4)
    with torch.no_grad():
        model.unet.conv_out.bias[1] += 0.5
    assert not torch.equal(before, sample(model, [0], sampler="ddpm", steps=4))


def test_output_channels_that_are_not_twice_the_input_are_refused(
    folder: Callable[..., Path], learned: UNetConfig
) -> None:
    with pytest.raises(CheckpointError, match="out_channels = 3 is neither in_channels = 1 nor twice that"):
        load_model(folder(dataclasses.replace(learned, out_channels=3)))


def test_noise_keeps_its_bits_where_the_variance_is_fixed() -> None:
    """Rows of other samplers have log_variance_range 0."""
    z = torch.randn(2, 1, 3, 3)
    assert torch.equal(apply_learned_variance(z, torch.randn(2, 1, 3, 3), torch.zeros(2)), z)
