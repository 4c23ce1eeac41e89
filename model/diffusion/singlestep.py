"""Rows of the single-step samplers, which remember nothing from one step to the next.

Matrices M for `registers' = M · (registers, x̂_0, ε̂, z)`, x in the variance-preserving form
x_t = α·x_0 + σ·ε. ρ = σ/α, x̄ = x_t/α; a prime marks the next level. On x̄ the probability-flow ODE is
dx̄/dρ = (x̄ − x̂_0)/ρ = ε̂.
"""

from __future__ import annotations

import numpy as np

from denoised.model.diffusion.grids import Levels
from denoised.model.diffusion.plans import Row


def ddpm_rows(levels: Levels, variance_type: str = "fixed_small") -> list[Row]:
    """Ancestral sampling (Ho et al. 2020, arXiv:2006.11239, algorithm 2 and eq. 7), on any sub-grid.

    variance_type: fixed_small is β̃, fixed_large is β (Ho et al. 2020, section 3.2). With learned_range and
    learned the network predicts the variance (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15): where
    log σ² lies between log β̃ and log β, or log σ² itself.
    """
    rows: list[Row] = []
    for i in range(levels.steps):
        a, s, a_next, s_next = levels.interval(i)
        beta = 1 - (a / a_next) ** 2  # β of the whole interval: 1 − ᾱ/ᾱ'
        beta_tilde = s_next**2 / s**2 * beta  # eq. 7
        mean = [(a / a_next) * s_next**2 / s**2, a_next * beta / s**2, 0.0]  # μ̃ of eq. 7, weights of (x, x̂_0, ε̂)
        if i + 1 == levels.steps:
            noise, log_variance_range = 0.0, 0.0  # algorithm 2, line 3: z = 0 in the last step
        elif variance_type == "learned":
            noise, log_variance_range = 1.0, 0.5  # σ = exp(½·log σ²)
        else:
            noise = np.sqrt(beta if variance_type == "fixed_large" else beta_tilde)
            # σ = √β̃·(β/β̃)^(v/2), v from 0 to 1
            log_variance_range = np.log(beta / beta_tilde) / 2 if variance_type == "learned_range" else 0.0
        rows.append(Row(i, i + 1, [[*mean, noise]], log_variance_range))
    return rows


def ddim_rows(levels: Levels, eta: float = 0.0) -> list[Row]:
    """DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12 and 16); η = 0 is deterministic, η = 1 is DDPM's fixed_small."""
    rows: list[Row] = []
    for i in range(levels.steps):
        a, s, a_next, s_next = levels.interval(i)
        noise = eta * s_next / s * np.sqrt(1 - (a / a_next) ** 2)  # σ_τ(η) of eq. 16
        # eq. 12; rounding may take the root's argument below 0.
        rows.append(Row(i, i + 1, [[0.0, a_next, np.sqrt(max(s_next**2 - noise**2, 0.0)), noise]]))
    return rows


def euler_rows(levels: Levels) -> list[Row]:
    """Euler's method on dx̄/dρ (Karras et al. 2022, arXiv:2206.00364, algorithm 1 without its correction)."""
    return [Row(i, i + 1, [euler_update(levels, i, levels.ratio[i + 1])]) for i in range(levels.steps)]


def euler_a_rows(levels: Levels) -> list[Row]:
    """Euler to ρ_down, then noise up to ρ' (`sample_euler_ancestral` of k-diffusion).

    At the same levels this is DDIM with η = 1.
    """
    return [Row(i, i + 1, [ancestral_update(levels, i)]) for i in range(levels.steps)]


def heun_rows(levels: Levels) -> list[Row]:
    """Heun's method (Karras et al. 2022, algorithm 1): two rows for each step, one for the last.

    Registers: x, x at the start of the step, the first x̂_0 of the step.
    """
    rows: list[Row] = []
    for i in range(levels.steps):
        a, a_next = levels.alpha[i], levels.alpha[i + 1]
        rho, rho_next = levels.ratio[i], levels.ratio[i + 1]
        x, x0, _, _ = euler_update(levels, i, rho_next)
        last = i + 1 == levels.steps  # to ρ = 0, where the second slope is undefined: Euler alone
        keep = [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]]
        rows.append(Row(i, i + 1 if last else i, [[x, 0.0, 0.0, x0, 0.0, 0.0], *keep]))
        if not last:
            # x̄' = x̄ + (ρ' − ρ)·½·(d + d'), d = (x̄ − x̂_0)/ρ at the start, d' the same at Euler's end.
            half = (rho_next - rho) / 2
            correct = [
                half / rho_next,  # x: Euler's end, in the scale of α' already
                a_next / a * (1 + half / rho),  # x at the start
                -a_next * half / rho,  # x̂_0 at the start
                -a_next * half / rho_next,  # x̂_0 at Euler's end
                0.0,
                0.0,
            ]
            rows.append(Row(i + 1, i + 1, [correct, [0.0] * 6, [0.0] * 6]))
    return rows


def dpm_2_rows(levels: Levels) -> list[Row]:
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1): the slope at √(ρ·ρ') serves the whole step.

    k-diffusion's `sample_dpm_2` without churn is the same.

    levels: of `midpoint_levels`. Registers: x, x at the start of the step.
    """
    rows: list[Row] = []
    last = levels.steps - 1
    for i in range(0, last, 2):
        a, a_middle, a_next = levels.alpha[i : i + 3]
        rho, rho_middle, rho_next = levels.ratio[i : i + 3]
        x, x0, _, _ = euler_update(levels, i, rho_middle)
        rows.append(Row(i, i // 2, [[x, 0.0, x0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]))
        # x̄' = x̄ + (ρ' − ρ)·(x̄_m − x̂_0)/ρ_m, x̂_0 and x̄_m at the middle.
        change = a_next * (rho_next - rho) / rho_middle
        rows.append(Row(i + 1, i // 2 + 1, [[change / a_middle, a_next / a, -change, 0.0, 0.0], [0.0] * 5]))
    x, x0, _, _ = euler_update(levels, last, levels.ratio[last + 1])  # to ρ = 0
    rows.append(Row(last, last // 2 + 1, [[x, 0.0, x0, 0.0, 0.0], [0.0] * 5]))
    return rows


def dpmpp_sde_rows(levels: Levels) -> list[Row]:
    """DPM-Solver++ as an SDE solver of two stages: an ancestral step to √(ρ·ρ'), whose x̂_0 serves an ancestral step
    from ρ to ρ' (`sample_dpmpp_sde` of k-diffusion; the name is theirs).

    Both steps follow one Brownian motion in ρ, so the noise of the whole step is that of its first half and fresh
    noise, weighted by the square roots of the halves' lengths. Registers: x, x at the start of the step, its first z.

    levels: of `midpoint_levels`.
    """
    rows: list[Row] = []
    last = levels.steps - 1
    for i in range(0, last, 2):
        a, _, a_next = levels.alpha[i : i + 3]
        rho, rho_middle, rho_next = levels.ratio[i : i + 3]
        x, x0, _, noise = ancestral_update(levels, i)
        keep = [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
        rows.append(Row(i, i // 2, [[x, 0.0, 0.0, x0, 0.0, noise], *keep]))
        # x̄' = ρ_down/ρ·x̄ + (1 − ρ_down/ρ)·x̂_0 + ρ_up·z, x̂_0 at the middle.
        down, up = rho_next**2 / rho**2, rho_next * np.sqrt(1 - (rho_next / rho) ** 2)
        first, second = (np.sqrt(part / (rho - rho_next)) for part in (rho - rho_middle, rho_middle - rho_next))
        update = [0.0, a_next / a * down, a_next * up * first, a_next * (1 - down), 0.0, a_next * up * second]
        rows.append(Row(i + 1, i // 2 + 1, [update, [0.0] * 6, [0.0] * 6]))
    x, x0, _, _ = euler_update(levels, last, levels.ratio[last + 1])  # to ρ = 0
    rows.append(Row(last, last // 2 + 1, [[x, 0.0, 0.0, x0, 0.0, 0.0], [0.0] * 6, [0.0] * 6]))
    return rows


def euler_update(levels: Levels, i: int, rho_end: float) -> list[float]:
    """Euler from level i to ρ = rho_end, in the scale of level i + 1: the weights of (x, x̂_0, ε̂, z)."""
    # x̄_end = x̄ + (ρ_end − ρ)·(x̄ − x̂_0)/ρ = w·x̄ + (1 − w)·x̂_0 with w = ρ_end/ρ.
    w = rho_end / levels.ratio[i]
    a, a_next = levels.alpha[i], levels.alpha[i + 1]
    return [a_next / a * w, a_next * (1 - w), 0.0, 0.0]


def ancestral_update(levels: Levels, i: int) -> list[float]:
    """From level i to level i + 1 by way of ρ_down² = ρ'² − ρ_up²: the weights of (x, x̂_0, ε̂, z)."""
    rho, rho_next = levels.ratio[i], levels.ratio[i + 1]
    # ρ_up² = ρ'²·(ρ² − ρ'²)/ρ², so ρ_down = ρ'²/ρ; as √(ρ'² − ρ_up²) it would be rounding error for ρ' ≪ ρ.
    rho_up = rho_next * np.sqrt(1 - (rho_next / rho) ** 2)
    weights = euler_update(levels, i, rho_next**2 / rho)
    return [*weights[:-1], levels.alpha[i + 1] * rho_up]
