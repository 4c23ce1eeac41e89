"""Where diffusers 0.42.1 differs from this package (docs/mathematics.md has the whole list).

Each test checks both sides; if one fails, diffusers was changed: compare again. More such tests are in
test_plans_against_diffusers.py and test_samplers_against_diffusers.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from denoised.model.checkpoints.noise_settings import NoiseSettings
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.samplers import compile_plan
from denoised.model.diffusion.spacings import RatioSpacing
from denoised.model.errors import PlanError
from denoised.model.networks.unet.unet_config import UNetConfig

# diffusers 0.42.1 converts tensors to numpy arrays in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (implementation|must):DeprecationWarning")

KARRAS = RatioSpacing("karras")
LINEAR = NoiseSchedule.from_name("linear")


def test_diffusers_computes_its_noise_tables_in_float32() -> None:
    """mathematics.md, trap 19: ᾱ is off by some 1e-7 of itself, but 1 − ᾱ by 1.66e-4.

    How the errors of a product of T factors add up depends on the order in which a processor multiplies: they are
    between a rounding (2⁻²⁴) and T of them. The largest error of 1 − ᾱ is that of the first factor alone.
    """
    alpha_bar = DDIMScheduler().alphas_cumprod.double().numpy()
    assert 2**-24 < np.abs(alpha_bar / LINEAR.alpha**2 - 1).max() < len(alpha_bar) * 2**-24
    assert np.abs((1 - alpha_bar) / LINEAR.sigma**2 - 1).max() == pytest.approx(1.66e-4, rel=0.01)


def test_diffusers_reads_a_learned_variance_as_the_variance_itself() -> None:
    """mathematics.md, trap 12: Nichol & Dhariwal's network outputs log σ², so .04 means σ = e^.02 here."""
    theirs = DDPMScheduler(variance_type="learned")._get_variance(500, predicted_variance=torch.tensor(0.04))
    assert theirs.item() == pytest.approx(0.04)
    plan = compile_plan("ddpm", LINEAR, 10, Grid(variance_type="learned"))
    assert plan.matrices[3, 0, -1] * np.exp(plan.log_variance_range[3] * 0.04) == pytest.approx(np.exp(0.02))


def test_diffusers_uses_the_logarithm_of_the_larger_variance_as_the_variance() -> None:
    """mathematics.md, trap 12: fixed_large_log gives √(log β), which is not a number. It is not offered here."""
    scheduler = DDPMScheduler(variance_type="fixed_large_log")
    scheduler.set_timesteps(10)
    zeros = torch.zeros(1, 1, 2, 2)
    theirs = scheduler.step(zeros, scheduler.timesteps[0], zeros, generator=torch.Generator().manual_seed(0))
    assert theirs.prev_sample.isnan().all()
    with pytest.raises(PlanError, match="variance_type = 'fixed_large_log' is not supported by ddpm"):
        compile_plan("ddpm", LINEAR, 10, Grid(variance_type="fixed_large_log"))


def test_an_offset_leads_diffusers_past_the_last_timestep() -> None:
    """mathematics.md, trap 4: index 1000 of a table of 1000."""
    scheduler = DDIMScheduler(steps_offset=1, timestep_spacing="leading")
    scheduler.set_timesteps(1000)
    assert scheduler.timesteps[0] == 1000
    with pytest.raises(PlanError, match="starts at 1000, past the last 999"):
        compile_plan("ddim", LINEAR, 1000, Grid("leading", steps_offset=1))


@pytest.mark.parametrize(
    ("sampler", "kind"), [("dpmpp_2m", DPMSolverMultistepScheduler), ("unipc", UniPCMultistepScheduler)]
)
@pytest.mark.parametrize(("spacing", "different"), [("leading", 1), ("linspace", 999)])
def test_with_as_many_steps_as_timesteps_diffusers_solvers_repeat_some(
    sampler: str, kind: type, spacing: str, different: int
) -> None:
    """mathematics.md, trap 9: N = T of the DPM-Solver family; ours visits each timestep once."""
    scheduler = kind(timestep_spacing=spacing)
    scheduler.set_timesteps(1000)
    assert len(set(scheduler.timesteps.tolist())) == different
    assert compile_plan(sampler, LINEAR, 1000, Grid(spacing)).t.tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize(
    ("sampler", "kind", "rounded"),
    [
        ("dpmpp_2m", DPMSolverMultistepScheduler, True),
        ("unipc", UniPCMultistepScheduler, True),
        ("dpm_2", KDPM2DiscreteScheduler, True),
        ("euler", EulerDiscreteScheduler, False),
    ],
)
def test_some_diffusers_classes_round_the_times_of_karras_levels(sampler: str, kind: type, rounded: bool) -> None:
    """mathematics.md, trap 37: 948.93 is the second of twelve; here the network gets it unrounded."""
    scheduler = kind(beta_start=1e-4, beta_end=0.02, use_karras_sigmas=True, timestep_spacing="linspace")
    scheduler.set_timesteps(12)
    whole = slice(0, None, 2 if sampler == "dpm_2" else 1)  # without the midpoints
    theirs, ours = (
        scheduler.timesteps.double().numpy()[whole],
        compile_plan(sampler, LINEAR, 12, Grid("linspace", ratio_spacing=KARRAS)).t[whole],
    )
    assert ours[1] == pytest.approx(948.93, abs=0.01)
    assert theirs == pytest.approx(np.round(ours) if rounded else ours, abs=0.01)


def test_a_file_without_a_spacing_has_that_of_its_class_for_every_sampler(tmp_path: Path) -> None:
    """`from_config` of diffusers drops the defaults of the file's class and takes those of the new class instead.

    A request's `spacing` gives the timesteps of diffusers.
    """
    keys = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    file = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **keys}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(file))
    theirs = EulerDiscreteScheduler.from_config(PNDMScheduler.from_pretrained(tmp_path).config)
    assert theirs.config["timestep_spacing"] == "linspace"
    theirs.set_timesteps(10)
    settings = NoiseSettings.read(tmp_path / "scheduler_config.json")
    grid = settings.grid(UNetConfig())
    assert grid.spacing == "leading"
    ours = compile_plan("euler", settings.schedule, 10, grid)
    assert ours.t.tolist() == list(range(901, 0, -100))
    asked = compile_plan("euler", settings.schedule, 10, replace(grid, spacing="linspace"))
    np.testing.assert_allclose(asked.t, theirs.timesteps.numpy(), rtol=1e-7)
