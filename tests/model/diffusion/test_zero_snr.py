"""Schedules with zero terminal SNR, which end in pure noise (Lin et al. 2023, arXiv:2305.08891)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from denoised.model.checkpoints.writing import scheduler_config
from denoised.model.diffusion.grids import SPACINGS, Grid
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.predictions import estimate_from_output
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan, offered_samplers
from denoised.model.diffusion.spacings import RatioSpacing
from denoised.model.serving.loading import load_model
from denoised.model.serving.sampling import sample

Folder = Callable[..., Path]


KARRAS = RatioSpacing("karras")


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_the_first_level_stays_and_the_last_is_noise_alone(name: str) -> None:
    """mathematics.md, noise levels: ᾱ[999] = 0; √ᾱ is scaled and shifted: its differences keep their ratios."""
    before = NoiseSchedule.from_name(name)
    after = before.with_zero_terminal_snr()
    assert (after.alpha[-1], after.sigma[-1]) == (0.0, 1.0)
    assert after.alpha[0] == before.alpha[0]
    steps = np.diff(before.alpha) / np.diff(after.alpha)
    assert steps == pytest.approx(np.full(999, steps[0]), rel=1e-9)
    assert after.alpha**2 + after.sigma**2 == pytest.approx(np.ones(1000), abs=1e-12)
    assert after.has_zero_terminal_snr
    assert not before.has_zero_terminal_snr


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_levels_are_those_of_diffusers() -> None:
    """ᾱ = 0 for DDIM; 2^−24 for the samplers on σ/α, which would divide by it."""
    ours = NoiseSchedule.from_name("linear").with_zero_terminal_snr()
    ddim = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert ours.alpha**2 == pytest.approx(ddim.alphas_cumprod.numpy(), abs=1e-6)
    for kind, sampler in ((EulerDiscreteScheduler, "euler"), (DPMSolverMultistepScheduler, "dpmpp_2m")):
        scheduler = kind(rescale_betas_zero_snr=True, timestep_spacing="trailing", beta_end=0.02, beta_start=1e-4)
        scheduler.set_timesteps(10)
        plan = compile_plan(sampler, ours, 10, Grid("trailing"))
        assert (plan.sigma / plan.alpha)[0] == pytest.approx(4096, rel=1e-6)
        assert plan.sigma / plan.alpha == pytest.approx(scheduler.sigmas[:-1].numpy(), rel=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_plan_is_finite(sampler: str, spacing: str) -> None:
    schedule = NoiseSchedule.from_name("squaredcos_cap_v2").with_zero_terminal_snr()
    for ratio_spacing, steps in product((None, KARRAS), (1, 2, 3, 10, 50)):
        plan = compile_plan(sampler, schedule, steps, Grid(spacing, ratio_spacing=ratio_spacing))
        assert np.isfinite(plan.matrices).all()
        assert np.isfinite(plan.t).all()
        assert np.isfinite(plan.log_variance_range).all()


def test_the_scheduler_file_of_such_a_model_keeps_the_setting(folder: Folder) -> None:
    path = folder(**scheduler_config("squaredcos_cap_v2", "v_prediction", zero_snr=True))
    assert load_model(path).schedule.has_zero_terminal_snr
    assert DDIMScheduler.from_pretrained(path / "scheduler").alphas_cumprod[-1] == 0.0
    without = load_model(folder(**scheduler_config("squaredcos_cap_v2", "v_prediction")))
    assert not without.schedule.has_zero_terminal_snr


def test_v_at_pure_noise_is_the_negative_of_the_image() -> None:
    """mathematics.md, trap 8: ᾱ = 0: x̂_0 = −v, finite; so is ε̂ = x."""
    x, v = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    read = estimate_from_output(v, x, torch.zeros(2), torch.ones(2), "v_prediction")
    assert torch.equal(read.x0, -v)
    assert torch.equal(read.epsilon, x)


@pytest.mark.parametrize("sampler", offered_samplers(Grid()))
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_a_model_with_such_a_schedule_gives_finite_images(folder: Folder, sampler: str, prediction_type: str) -> None:
    model = load_model(folder(rescale_betas_zero_snr=True, prediction_type=prediction_type))
    assert torch.isfinite(sample(model, [0, 1], sampler=sampler, steps=5)).all()


def test_a_ddim_run_from_pure_noise_ends_where_diffusers_ends(folder: Folder) -> None:
    model = load_model(folder(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    ours = sample(model, [2], seed=3, steps=10)
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model.unet(x, t[None], torch.tensor([2])), t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-4)
