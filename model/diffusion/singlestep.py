"""Rows of the samplers that remember nothing from one step to the next.

Matrices M for `registers' = M · (registers, x̂_0, ε̂, z)`, x in the variance-preserving form
x_t = α·x_0 + σ·ε. ρ = σ/α; a prime marks the next level.
"""

from __future__ import annotations

import numpy as np

from denoised.model.diffusion.grids import Levels
from denoised.model.diffusion.plans import Row


def ddpm_rows(levels: Levels, variance_type: str = "fixed_small") -> list[Row]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2 and eq. 7), on any sub-grid.

    learned_range, learned: the network says how much noise (Nichol & Dhariwal 2021, arXiv:2102.09672,
    eq. 15), as a share of the way from log β̃ to log β, or as log σ² itself.
    """
    rows: list[Row] = []
    for i in range(levels.steps):
        a, s, a_next, s_next = levels.around(i)
        beta = 1 - (a / a_next) ** 2
        smallest = s_next**2 / s**2 * beta
        update = [(a / a_next) * s_next**2 / s**2, a_next * beta / s**2, 0.0]
        if i + 1 == levels.steps:
            noise, log_variance_range = 0.0, 0.0
        elif variance_type == "learned":
            noise, log_variance_range = 1.0, 0.5
        else:
            noise = np.sqrt(beta if variance_type == "fixed_large" else smallest)
            log_variance_range = np.log(beta / smallest) / 2 if variance_type == "learned_range" else 0.0
        rows.append(Row(i, i + 1, [[*update, noise]], log_variance_range))
    return rows


def ddim_rows(levels: Levels, eta: float = 0.0) -> list[Row]:
    """Song et al. 2020 (arXiv:2010.02502), eq. 12 and 16; η = 0 is deterministic."""
    rows: list[Row] = []
    for i in range(levels.steps):
        a, s, a_next, s_next = levels.around(i)
        noise = eta * s_next / s * np.sqrt(1 - (a / a_next) ** 2)
        rows.append(Row(i, i + 1, [[0.0, a_next, np.sqrt(max(s_next**2 - noise**2, 0.0)), noise]]))
    return rows


def euler_rows(levels: Levels) -> list[Row]:
    """Euler's method on dx/dρ = (x − x̂_0)/ρ (Karras et al. 2022, algorithm 1 without its second half)."""
    return [Row(i, i + 1, [euler_update(levels, i, levels.ratio[i + 1])]) for i in range(levels.steps)]


def euler_a_rows(levels: Levels) -> list[Row]:
    """Euler to ρ_down, then noise up to ρ' (the ancestral step of k-diffusion; DDIM with η = 1 at the same levels)."""
    return [Row(i, i + 1, [ancestral_update(levels, i)]) for i in range(levels.steps)]


def heun_rows(levels: Levels) -> list[Row]:
    """Heun's method (Karras et al. 2022, algorithm 1, S_churn = 0): two rows a step, one for the last.

    Registers: x, the step's x, the step's first x̂_0.
    """
    rows: list[Row] = []
    for i in range(levels.steps):
        a, a_next = levels.alpha[i], levels.alpha[i + 1]
        now, following = levels.ratio[i], levels.ratio[i + 1]
        x, x0, _, _ = euler_update(levels, i, following)
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


def dpm_2_rows(levels: Levels) -> list[Row]:
    """DPM-Solver-2 as in Karras et al. 2022 (algorithm 3, churn 0): the slope at √(ρ·ρ') carries the whole step.

    levels: with the middle ones in between (`halved_levels`). Registers: x, the step's x.
    """
    rows: list[Row] = []
    last = levels.steps - 1
    for i in range(0, last, 2):
        a, a_middle, a_next = levels.alpha[i : i + 3]
        now, middle, following = levels.ratio[i : i + 3]
        x, x0, _, _ = euler_update(levels, i, middle)
        rows.append(Row(i, i // 2, [[x, 0.0, x0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]))
        change = a_next * (following - now) / middle
        rows.append(Row(i + 1, i // 2 + 1, [[change / a_middle, a_next / a, -change, 0.0, 0.0], [0.0] * 5]))
    x, x0, _, _ = euler_update(levels, last, levels.ratio[last + 1])
    rows.append(Row(last, last // 2 + 1, [[x, 0.0, x0, 0.0, 0.0], [0.0] * 5]))
    return rows


def euler_update(levels: Levels, i: int, target: float) -> list[float]:
    """From level i to ρ = target, in the scale of level i + 1: the weights of (x, x̂_0, ε̂, z)."""
    share = target / levels.ratio[i]
    a, a_next = levels.alpha[i], levels.alpha[i + 1]
    return [a_next / a * share, a_next * (1 - share), 0.0, 0.0]


def ancestral_update(levels: Levels, i: int) -> list[float]:
    """From level i to level i + 1 by way of ρ_down² = ρ'² − ρ_up²: the weights of (x, x̂_0, ε̂, z)."""
    now, following = levels.ratio[i], levels.ratio[i + 1]
    up = np.sqrt(following**2 * (now**2 - following**2) / now**2)
    row = euler_update(levels, i, np.sqrt(following**2 - up**2))
    return [*row[:-1], levels.alpha[i + 1] * up]
