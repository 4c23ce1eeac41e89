"""The timesteps of every number of steps from 1 to T are those of diffusers 0.42.1.

The three exceptions are in docs/mathematics.md, "What diffusers 0.42.1 does differently"; each test checks both sides.
"""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from denoised.model.diffusion.grids import SPACINGS, Grid, timesteps
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan

# diffusers 0.42.1 converts tensors to numpy arrays in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (implementation|must):DeprecationWarning")

SOLVERS = {
    "euler": EulerDiscreteScheduler,
    "lms": LMSDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
# trailing: arange(1000, 0, -1000/N) has N + 1 entries; 100/… and 1000/… alike. The first ten of the 62.
ONE_TOO_MANY = [61, 103, 121, 122, 201, 206, 217, 223, 227, 233]


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("total", [1000, 100, 250, 37])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_and_ddim_visit_the_timesteps_of_diffusers(kind: type, total: int, spacing: str) -> None:
    """Ties such as 62.5 (48 trailing steps) are rounded the same way, for every number of steps."""
    scheduler = kind(num_train_timesteps=total, timestep_spacing=spacing)
    longer = []
    for steps in range(1, total + 1):
        scheduler.set_timesteps(steps)
        theirs, ours = scheduler.timesteps.tolist(), timesteps(total, steps, spacing)
        if (spacing, steps) == ("linspace", 1):
            assert (theirs, ours) == ([0], [total - 1])
            continue
        if len(theirs) > steps:
            longer.append(steps)
            assert theirs[steps:] == [-1]  # not a timestep
        assert ours == theirs[:steps], steps
    if total == 1000:
        assert longer[:10] == (ONE_TOO_MANY if spacing == "trailing" else [])
        assert len(longer) == (62 if spacing == "trailing" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_other_samplers_visit_the_timesteps_of_diffusers(sampler: str, spacing: str) -> None:
    """To the rounding of float32, in which diffusers keeps times between timesteps."""
    linear = NoiseSchedule.from_name("linear")
    scheduler = SOLVERS[sampler](timestep_spacing=spacing, beta_start=1e-4, beta_end=0.02)
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        ours = SAMPLERS[sampler].levels(linear, steps, Grid(spacing)).t
        if (spacing, steps) == ("linspace", 1) and sampler in ("euler", "lms"):
            continue  # test_one_step_starts_at_pure_noise_where_diffusers_starts_near_the_image
        if steps == 1000 and sampler in ("dpmpp_2m", "unipc") and spacing != "trailing":
            continue  # test_with_as_many_steps_as_timesteps_diffusers_solvers_repeat_some
        theirs = scheduler.timesteps.double().numpy()[:steps]
        assert np.abs(ours - theirs).max() < 999 * np.finfo(np.float32).eps, steps


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
@pytest.mark.parametrize("original", [50, 37, 1000])
def test_distilled_models_visit_the_timesteps_of_diffusers(sampler: str, original: int) -> None:
    """For every number of steps that diffusers takes: up to those of distillation."""
    scheduler = {"lcm": LCMScheduler, "tcd": TCDScheduler}[sampler](original_inference_steps=original)
    stable = NoiseSchedule.from_name("scaled_linear", start=0.00085, end=0.012)
    for steps in range(1, original + 1, 1 if original < 100 else 7):
        scheduler.set_timesteps(steps)
        ours = SAMPLERS[sampler].levels(stable, steps, Grid(original_steps=original)).t
        assert ours.tolist() == scheduler.timesteps.tolist(), steps


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("offset", [0, 1])
def test_plms_visits_the_timesteps_of_diffusers(spacing: str, offset: int) -> None:
    """The second timestep twice. As with DDIM, diffusers has one entry too many at 61, 103 … trailing steps."""
    scheduler = PNDMScheduler(skip_prk_steps=True, timestep_spacing=spacing, steps_offset=offset)
    linear, grid = NoiseSchedule.from_name("linear"), Grid(spacing, offset)
    for steps in (*range(2, 130), 250, 333, 999):
        scheduler.set_timesteps(steps)
        t = compile_plan("plms", linear, steps, grid).t.tolist()
        assert len(t) == steps + 1
        assert t == scheduler.timesteps.tolist()[: len(t)], steps
        assert len(scheduler.timesteps) == len(t) + (spacing == "trailing" and steps in ONE_TOO_MANY)
