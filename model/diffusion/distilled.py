"""Levels and rows of the samplers for distilled models, which were trained to jump along their trajectories.

Matrices M for `registers' = M · (registers, x̂_0, ε̂, z)`, x in the variance-preserving form
x_t = α·x_0 + σ·ε. A prime marks the next level.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from denoised.model.diffusion.grids import Grid, Levels, discrete_levels, timesteps
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Row
from denoised.model.diffusion.spacings import RatioSpacing
from denoised.model.errors import PlanError

DATA_STD = 0.5  # σ_data of the boundary condition (Luo et al. 2023, section 3)


def distilled_levels(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    """`steps` of the timesteps that the model was distilled on; the end is timestep 0.

    Distillation visits k − 1, 2k − 1, … for k = T // `grid.original_steps`. A run takes every so many of them, from
    the last on (diffusers' `LCMScheduler`). More steps than that have trailing spacing, which is the same grid where
    both have as many steps as distillation.

    Raises:
        PlanError: if `steps` is not in 1 … T.
    """
    total = schedule.timesteps
    original = min(grid.original_steps, total)
    if 1 <= steps <= original:
        stride = total // original
        chosen = np.floor(np.linspace(0, original, steps, endpoint=False)).astype(int)
        ts = ((original - chosen) * stride - 1).tolist()
    else:
        ts = timesteps(total, steps, "trailing")
    visited = [*ts, 0]
    return Levels(np.asarray(ts, dtype=np.float64), schedule.alpha[visited], schedule.sigma[visited])


def lcm_rows(levels: Levels, timestep_scaling: float = 10.0) -> list[Row]:
    """Multistep consistency sampling (Song et al. 2023, arXiv:2303.01469, algorithm 1), as latent consistency models
    have it (Luo et al. 2023, arXiv:2310.04378, algorithm 3).

    Each row jumps to f = c_skip·x + c_out·x̂_0, then all but the last add noise up to the next level. The scalings
    keep f(x, 0) = x.

    timestep_scaling: the factor on t in c_skip and c_out.
    """
    rows: list[Row] = []
    for i in range(levels.steps):
        c_skip, c_out = boundary_scalings(float(levels.t[i]), timestep_scaling)
        if i + 1 == levels.steps:
            rows.append(Row(i, i + 1, [[c_skip, c_out, 0.0, 0.0]]))  # f itself, without noise
        else:
            a_next, s_next = levels.alpha[i + 1], levels.sigma[i + 1]  # x' = α'·f + σ'·z
            rows.append(Row(i, i + 1, [[a_next * c_skip, a_next * c_out, 0.0, s_next]]))
    return rows


def boundary_scalings(t: float, timestep_scaling: float = 10.0) -> tuple[float, float]:
    """c_skip and c_out at time t, in timesteps (Luo et al. 2023, section 3; diffusers' `LCMScheduler`)."""
    scaled = timestep_scaling * t
    squared = scaled**2 + DATA_STD**2
    # c_skip = σ_data²/(t² + σ_data²) and c_out = t/√(t² + σ_data²), so c_skip(0) = 1 and c_out(0) = 0.
    return DATA_STD**2 / squared, scaled / math.sqrt(squared)


def tcd_rows(levels: Levels, schedule: NoiseSchedule, gamma: float = 0.0) -> list[Row]:
    """Strategic stochastic sampling (Zheng et al. 2024, arXiv:2402.19159, algorithm 4).

    Each row goes to x_s = α_s·x̂_0 + σ_s·ε̂ at s = ⌊(1 − γ)·t'⌋, then adds noise up to t'. The last row ends at
    timestep 0, as in diffusers' `TCDScheduler`.

    gamma: γ, 0 … 1; 0 is deterministic, 1 adds noise from timestep 0 on.
    """
    rows: list[Row] = []
    for i in range(levels.steps):
        _, _, a_next, s_next = levels.interval(i)
        last = i + 1 == levels.steps
        if last or gamma == 0:
            rows.append(Row(i, i + 1, [[0.0, a_next, s_next, 0.0]]))  # s = t': DDIM's step
            continue
        # In float32, as diffusers rounds the product.
        s = int(np.floor(np.float32(1 - gamma) * np.float32(levels.t[i + 1])))
        # From s up to t': x' = (α'/α_s)·x_s + √(1 − (α'/α_s)²)·z, as the forward process adds noise.
        kept = a_next / schedule.alpha[s]
        rows.append(Row(i, i + 1, [[0.0, a_next, kept * schedule.sigma[s], math.sqrt(max(1 - kept**2, 0.0))]]))
    return rows


def consistency_levels(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    """The first `steps` of `grid.consistency_levels`, the only ones at which the network jumps; the end is ρ = 0.

    A grid without such levels has trailing timesteps, so that the sampler can be studied with an exact network.

    Raises:
        PlanError: if `steps` is over the number of levels.
    """
    tuned = grid.consistency_levels
    if tuned and not 1 <= steps <= len(tuned):
        raise PlanError(f"steps = {steps} is outside 1 … {len(tuned)}, the noise levels that the model was tuned at")
    own = RatioSpacing(sigmas=tuned[:steps]) if tuned else None
    trailing = replace(grid, spacing="trailing", steps_offset=0, ratio_spacing=own)
    return discrete_levels(schedule, steps, trailing, end_alpha_one=True)


def consistency_rows(levels: Levels) -> list[Row]:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1) with ε = 0, the end of the teacher's trajectories.

    The network's x̂_0 is the jump f(x, ρ) itself. All but the last row add noise up to the next level:
    x = f + ρ'·z in the source, and x' = α'·f + σ'·z here.
    """
    rows: list[Row] = []
    for i in range(levels.steps):
        last = i + 1 == levels.steps
        a_next, s_next = levels.alpha[i + 1], levels.sigma[i + 1]
        rows.append(Row(i, i + 1, [[0.0, 1.0, 0.0, 0.0] if last else [0.0, a_next, 0.0, s_next]]))
    return rows
