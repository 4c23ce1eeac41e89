"""The samplers: functions that return the rows of a plan.

Each takes noise levels and gives matrices M for `registers' = M · (registers, x̂_0, ε̂, z)`,
x in the variance-preserving form x_t = α·x_0 + σ·ε. With ρ = σ/α and λ = log(α/σ); a prime
marks the next level. A new sampler is one more function and one more line of `SAMPLERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model.errors import PlanError
from model.grids import VARIANCES, Grid, Levels, discrete_levels, ratio_levels, solver_levels
from model.noise import NoiseSchedule
from model.plans import Plan, Row

Rows = list[Row]


def ddpm_rows(levels: Levels, variance_type: str = "fixed_small") -> Rows:
    """Ancestral sampling (Ho et al. 2020, algorithm 2 and eq. 7), on any sub-grid."""
    rows: Rows = []
    for i in range(levels.steps):
        a, s, a_next, s_next = _neighbours(levels, i)
        beta = 1 - (a / a_next) ** 2
        variance = s_next**2 / s**2 * beta if variance_type == "fixed_small" else beta
        noise = np.sqrt(variance) if i + 1 < levels.steps else 0.0
        rows.append(Row(i, i + 1, [[(a / a_next) * s_next**2 / s**2, a_next * beta / s**2, 0.0, noise]]))
    return rows


def ddim_rows(levels: Levels, eta: float = 0.0) -> Rows:
    """Song et al. 2020 (arXiv:2010.02502), eq. 12 and 16; η = 0 is deterministic."""
    rows: Rows = []
    for i in range(levels.steps):
        a, s, a_next, s_next = _neighbours(levels, i)
        noise = eta * s_next / s * np.sqrt(1 - (a / a_next) ** 2)
        rows.append(Row(i, i + 1, [[0.0, a_next, np.sqrt(max(s_next**2 - noise**2, 0.0)), noise]]))
    return rows


def euler_rows(levels: Levels) -> Rows:
    """Euler's method on dx/dρ = (x − x̂_0)/ρ (Karras et al. 2022, algorithm 1 without its second half)."""
    return [Row(i, i + 1, [_euler(levels, i, levels.ratio[i + 1])]) for i in range(levels.steps)]


def euler_a_rows(levels: Levels) -> Rows:
    """Euler to ρ_down, then noise up to ρ' (the ancestral step of k-diffusion; DDIM with η = 1 at the same levels)."""
    rows: Rows = []
    for i in range(levels.steps):
        now, following = levels.ratio[i], levels.ratio[i + 1]
        up = np.sqrt(following**2 * (now**2 - following**2) / now**2)
        row = _euler(levels, i, np.sqrt(following**2 - up**2))
        rows.append(Row(i, i + 1, [[*row[:-1], levels.alpha[i + 1] * up]]))
    return rows


def heun_rows(levels: Levels) -> Rows:
    """Heun's method (Karras et al. 2022, algorithm 1, S_churn = 0): two rows a step, one for the last.

    Registers: x, the step's x, the step's first x̂_0.
    """
    rows: Rows = []
    for i in range(levels.steps):
        a, a_next = levels.alpha[i], levels.alpha[i + 1]
        now, following = levels.ratio[i], levels.ratio[i + 1]
        x, x0, _, _ = _euler(levels, i, following)
        last = i + 1 == levels.steps
        keep = [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]]
        rows.append(Row(i, i + 1 if last else i, [[x, 0.0, 0.0, x0, 0.0, 0.0], *keep]))
        if not last:
            half = (following - now) / 2
            correct = [
                half / following,
                a_next / a * (1 + half / now),
                -a_next * half / now,
                -a_next * half / following,
                0.0,
                0.0,
            ]
            rows.append(Row(i + 1, i + 1, [correct, [0.0] * 6, [0.0] * 6]))
    return rows


def dpmpp_2m_rows(levels: Levels) -> Rows:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, arXiv:2211.01095, algorithm 2). Registers: x, the last x̂_0.

    First order in the first step and in the one that ends without noise.
    """
    return _multistep(levels, stochastic=False)


def dpmpp_2m_sde_rows(levels: Levels) -> Rows:
    """Its stochastic form, SDE-DPM-Solver++(2M) (the same, section 5). Registers: x, the last x̂_0."""
    return _multistep(levels, stochastic=True)


def _multistep(levels: Levels, *, stochastic: bool) -> Rows:
    rows: Rows = []
    for i in range(levels.steps):
        _, s, a_next, s_next = _neighbours(levels, i)
        decay = levels.ratio[i + 1] / levels.ratio[i]  # e^(−h), h = λ' − λ
        shrink = decay**2 if stochastic else decay
        x = s_next / s * (decay if stochastic else 1.0)
        noise = s_next * np.sqrt(1 - decay**2) if stochastic else 0.0
        slope = 0.0  # of the line through the last two x̂_0, halved: 1/(2·r_0)
        if i > 0 and s_next > 0:
            lam = levels.log_snr
            slope = (lam[i + 1] - lam[i]) / (lam[i] - lam[i - 1]) / 2
        gain = a_next * (1 - shrink)
        update = [x, -gain * slope, gain * (1 + slope), 0.0, noise]
        rows.append(Row(i, i + 1, [update, [0.0, 0.0, 1.0, 0.0, 0.0]]))
    return rows


def _euler(levels: Levels, i: int, target: float) -> list[float]:
    """From level i to ρ = target, in the scale of level i + 1: the weights of (x, x̂_0, ε̂, z)."""
    share = target / levels.ratio[i]
    a, a_next = levels.alpha[i], levels.alpha[i + 1]
    return [a_next / a * share, a_next * (1 - share), 0.0, 0.0]


def _neighbours(levels: Levels, i: int) -> tuple[float, float, float, float]:
    return levels.alpha[i], levels.sigma[i], levels.alpha[i + 1], levels.sigma[i + 1]


@dataclass(frozen=True)
class Sampler:
    """levels: which noise levels it visits; rows: what it does there."""

    levels: Callable[[NoiseSchedule, int, Grid], Levels]
    rows: Callable[[Levels, Grid, float], Rows]
    takes_eta: bool = False
    two_stage: bool = False  # two evaluations a step, but for the last


def _ending_in_one(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    return discrete_levels(schedule, steps, grid, end_alpha_one=True)


def _ending_as_told(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    return discrete_levels(schedule, steps, grid, end_alpha_one=grid.set_alpha_to_one)


def _ddpm(levels: Levels, grid: Grid, eta: float) -> Rows:
    if grid.variance_type not in VARIANCES:
        known = ", ".join(VARIANCES)
        raise PlanError(f"variance_type = {grid.variance_type!r} is not supported by ddpm (supported: {known})")
    return ddpm_rows(levels, grid.variance_type)


SAMPLERS = {
    "ddpm":         Sampler(_ending_in_one,  _ddpm),
    "ddim":         Sampler(_ending_as_told, lambda levels, grid, eta: ddim_rows(levels, eta), takes_eta=True),
    "euler":        Sampler(ratio_levels,    lambda levels, grid, eta: euler_rows(levels)),
    "euler_a":      Sampler(ratio_levels,    lambda levels, grid, eta: euler_a_rows(levels)),
    "heun":         Sampler(ratio_levels,    lambda levels, grid, eta: heun_rows(levels), two_stage=True),
    "dpmpp_2m":     Sampler(solver_levels,   lambda levels, grid, eta: dpmpp_2m_rows(levels)),
    "dpmpp_2m_sde": Sampler(solver_levels,   lambda levels, grid, eta: dpmpp_2m_sde_rows(levels)),
}  # fmt: skip


def compile_plan(sampler: str, schedule: NoiseSchedule, steps: int, grid: Grid, eta: float = 0.0) -> Plan:
    """The plan of a sampler by name.

    Raises:
        PlanError: for an unknown sampler, or steps, η or a grid outside its limits.
    """
    if sampler not in SAMPLERS:
        raise PlanError(f"sampler = {sampler!r} is not offered (offered: {', '.join(SAMPLERS)})")
    if not 0.0 <= eta <= 1.0:
        raise PlanError(f"eta = {eta} is outside 0 … 1")
    recipe = SAMPLERS[sampler]
    levels = recipe.levels(schedule, steps, grid)
    return Plan.of(sampler, levels, recipe.rows(levels, grid, eta))
