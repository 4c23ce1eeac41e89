"""Samplers as tables.

Every sampler offered here is linear in what is known at a step, so it compiles in float64
to a *plan*: one row (t, α, σ, M) per network evaluation, and the engine applies

    registers' = M · (registers, x̂_0, ε̂, z)

where registers are x and up to three held tensors, x̂_0 and ε̂ the network's estimate at
(x, t) and z fresh unit noise. x̂_0 may have been clipped on the way; ε̂ is the network's own,
as in diffusers' DDIM, so both conventions are columns of one table.

A new sampler is a function here that returns rows; nothing else changes. This module knows
nothing of networks, batches or queues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.errors import PlanError
from model.noise import Estimate, Float64, NoiseSchedule

SPACINGS = ("leading", "trailing", "linspace")
VARIANCES = ("fixed_small", "fixed_large")


@dataclass(frozen=True)
class Grid:
    """How a model's timesteps are thinned out; the fields of scheduler_config.json."""

    spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    variance_type: str = "fixed_small"


@dataclass(frozen=True)
class Plan:
    """A compiled sampler.

    t, alpha, sigma: (N,) float64, the level of each evaluation; matrices: (N, R, R+3) for R
    registers, columns (registers, x̂_0, ε̂, z); step: (N,) how many steps are done after it.
    """

    sampler: str
    t: Float64
    alpha: Float64
    sigma: Float64
    matrices: Float64
    step: tuple[int, ...]

    @property
    def evaluations(self) -> int:
        """Network calls per image."""
        return len(self.t)

    @property
    def steps(self) -> int:
        """Intervals of the noise schedule."""
        return self.step[-1]

    @property
    def registers(self) -> int:
        """Tensors that live between evaluations, x first."""
        return int(self.matrices.shape[1])

    def draws(self, row: int) -> bool:
        """Whether that row takes fresh noise."""
        return bool(np.any(self.matrices[row, :, -1] != 0.0))


def timesteps(total: int, steps: int, spacing: str = "leading", offset: int = 0) -> list[int]:
    """`steps` timesteps of 0 … total−1, strictly falling. Lin et al. 2023 (arXiv:2305.08891), table 2.

    Raises:
        PlanError: when `steps` is not in 1 … total or the offset leads past the last timestep.
    """
    if not 1 <= steps <= total:
        raise PlanError(f"steps = {steps} is outside 1 … {total}")
    if spacing == "leading":
        ts = [i * (total // steps) + offset for i in reversed(range(steps))]
    elif spacing == "trailing":
        ts = [round(total - i * total / steps) - 1 for i in range(steps)]
    elif spacing == "linspace":
        ts = [round(t) for t in np.linspace(total - 1, 0, steps)]
    else:
        raise PlanError(f"timestep_spacing = {spacing!r} is not supported (supported: {', '.join(SPACINGS)})")
    if ts[0] > total - 1:
        raise PlanError(f"steps = {steps} with steps_offset = {offset} starts at {ts[0]}, past the last {total - 1}")
    return ts


def ddpm(schedule: NoiseSchedule, steps: int, grid: Grid, eta: float = 0.0) -> Plan:
    """Ancestral sampling (Ho et al. 2020, algorithm 2 and eq. 7), on any sub-grid."""
    if grid.variance_type not in VARIANCES:
        raise PlanError(
            f"variance_type = {grid.variance_type!r} is not supported by ddpm (supported: {', '.join(VARIANCES)})"
        )
    ts, alpha, sigma = _levels(schedule, steps, grid, final_one=True)
    rows = []
    for i in range(steps):
        a, s, a_next, s_next = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        beta = 1 - (a / a_next) ** 2
        variance = s_next**2 / s**2 * beta if grid.variance_type == "fixed_small" else beta
        noise = np.sqrt(variance) if i + 1 < steps else 0.0
        rows.append([[(a / a_next) * s_next**2 / s**2, a_next * beta / s**2, 0.0, noise]])
    return _plan("ddpm", ts, alpha, sigma, rows)


def ddim(schedule: NoiseSchedule, steps: int, grid: Grid, eta: float = 0.0) -> Plan:
    """Song et al. 2020 (arXiv:2010.02502), eq. 12 and 16; η = 0 is deterministic."""
    ts, alpha, sigma = _levels(schedule, steps, grid, final_one=grid.set_alpha_to_one)
    rows = []
    for i in range(steps):
        a, s, a_next, s_next = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        noise = eta * s_next / s * np.sqrt(1 - (a / a_next) ** 2)
        rows.append([[0.0, a_next, np.sqrt(max(s_next**2 - noise**2, 0.0)), noise]])
    return _plan("ddim", ts, alpha, sigma, rows)


SAMPLERS: dict[str, Callable[[NoiseSchedule, int, Grid, float], Plan]] = {"ddpm": ddpm, "ddim": ddim}
TAKES_ETA = ("ddim",)


def compile_plan(sampler: str, schedule: NoiseSchedule, steps: int, grid: Grid, eta: float = 0.0) -> Plan:
    """The plan of a sampler by name.

    Raises:
        PlanError: for an unknown sampler, or steps, η or a grid outside its limits.
    """
    if sampler not in SAMPLERS:
        raise PlanError(f"sampler = {sampler!r} is not offered (offered: {', '.join(SAMPLERS)})")
    if not 0.0 <= eta <= 1.0:
        raise PlanError(f"eta = {eta} is outside 0 … 1")
    return SAMPLERS[sampler](schedule, steps, grid, eta)


def advance(registers: Tensor, estimate: Estimate, z: Tensor, matrices: Tensor) -> Tensor:
    """Apply one row of each trajectory's plan: registers' = M · (registers, x̂_0, ε̂, z).

    registers: (B, R, C, H, W); estimate and z: (B, C, H, W); matrices: (B, R, R+3) float32.
    Sums run in a fixed order and by elementwise products alone, so that an image's bits do
    not depend on its neighbours.
    """
    count = registers.shape[1]
    known = [*(registers[:, j] for j in range(count)), estimate.x0, estimate.epsilon, z]
    weights = matrices[..., None, None, None]  # (B, R, R+3, 1, 1, 1)
    out = torch.empty_like(registers)
    for i in range(count):
        total = weights[:, i, 0] * known[0]
        for j in range(1, count + 3):
            total = total + weights[:, i, j] * known[j]
        out[:, i] = total
    return out


def _levels(
    schedule: NoiseSchedule, steps: int, grid: Grid, final_one: bool
) -> tuple[list[int], list[float], list[float]]:
    """Timesteps, and α and σ at them and at the end (steps + 1 values): the next entry is the next level."""
    ts = timesteps(schedule.timesteps, steps, grid.spacing, grid.steps_offset)
    end_alpha, end_sigma = (1.0, 0.0) if final_one else (schedule.alpha[0], schedule.sigma[0])
    return ts, [*schedule.alpha[ts], float(end_alpha)], [*schedule.sigma[ts], float(end_sigma)]


def _plan(
    sampler: str, ts: Sequence[float], alpha: Sequence[float], sigma: Sequence[float], rows: list[list[list[float]]]
) -> Plan:
    return Plan(
        sampler=sampler,
        t=np.asarray(ts, dtype=np.float64),
        alpha=np.asarray(alpha[: len(ts)], dtype=np.float64),
        sigma=np.asarray(sigma[: len(ts)], dtype=np.float64),
        matrices=np.asarray(rows, dtype=np.float64),
        step=tuple(range(1, len(ts) + 1)),
    )
