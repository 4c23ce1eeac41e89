"""Every number of steps of every sampler; takes minutes, so it runs under `make test-slow`."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from denoised.model.diffusion.grids import SPACINGS, VARIANCES, Grid
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan
from denoised.model.diffusion.spacings import RatioSpacing

pytestmark = pytest.mark.slow
KARRAS = RatioSpacing("karras")
TIMESTEPS = 250
SCHEDULES = {
    "linear": NoiseSchedule.from_name("linear", TIMESTEPS),
    "cosine": NoiseSchedule.from_name("squaredcos_cap_v2", TIMESTEPS),
    "cosine, zero terminal SNR": NoiseSchedule.from_name("squaredcos_cap_v2", TIMESTEPS).with_zero_terminal_snr(),
}


def check(plan: Plan, steps: int) -> None:
    """The requested number of steps, falling levels, finite rows, no noise at the end, exact on a single data point."""
    assert plan.steps == steps
    sampler = SAMPLERS[plan.sampler]
    assert plan.evaluations == sampler.stages * (steps - 1) + 1 + (sampler.extra if steps > 1 else 0)
    assert np.isfinite(plan.matrices).all()
    ratios = [plan.sigma[row] / max(plan.alpha[row], 1e-9) for row in range(plan.evaluations)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(ratios))
    assert not plan.draws_noise(plan.evaluations - 1)
    registers = np.zeros(plan.registers)
    registers[0] = 1.3 * plan.initial_scale
    for alpha, sigma, matrix in zip(plan.alpha, plan.sigma, plan.matrices, strict=True):
        columns = np.array([*registers, 0.3, (registers[0] - alpha * 0.3) / sigma, 0.0])
        registers = matrix @ columns
    # A plan for distilled models ends at timestep 0, with the noise of that level: σ of the 250 is at most .02.
    assert registers[0] == pytest.approx(0.3, abs=1e-6 if sampler.takes_spacing else 0.03)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_number_of_steps_on_every_grid(sampler: str, schedule: str) -> None:
    karras = (False, True) if SAMPLERS[sampler].takes_spacing else (False,)
    for spacing, spaced in itertools.product(SPACINGS, karras):
        for steps in range(1, TIMESTEPS + 1):
            check(
                compile_plan(
                    sampler, SCHEDULES[schedule], steps, Grid(spacing, ratio_spacing=KARRAS if spaced else None)
                ),
                steps,
            )


@pytest.mark.parametrize("variance_type", VARIANCES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_number_of_steps_with_every_variance(variance_type: str, eta: float) -> None:
    for sampler, spacing, steps in itertools.product(("ddpm", "ddim"), SPACINGS, range(1, TIMESTEPS + 1)):
        grid = Grid(spacing, variance_type=variance_type)
        check(compile_plan(sampler, SCHEDULES["linear"], steps, grid, eta if sampler == "ddim" else 0.0), steps)
