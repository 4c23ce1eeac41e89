"""Rows of the samplers that mix by Langevin dynamics at each noise level.

One Langevin step at level ρ = σ/α, on x̄ = x_t/α with the score ∇log p = (x̂_0 − x̄)/ρ²:

    x̄' = x̄ + δ/2·(x̂_0 − x̄) + √δ·ρ·z        (step size δ·ρ²)

The step sizes are fixed numbers, not norms over a batch: the rows stay linear, and an image does not
depend on its neighbors. From the last level one more evaluation ends in x = x̂_0 (Jolicoeur-Martineau
et al. 2020, arXiv:2009.05475: otherwise the noise of the lowest level stays).
"""

from __future__ import annotations

import numpy as np

from denoised.model.diffusion.grids import Levels
from denoised.model.diffusion.noise import Float64
from denoised.model.diffusion.plans import Row
from denoised.model.diffusion.singlestep import ancestral_update, euler_update

LANGEVIN_STEPS = 5  # T at each level (Song & Ermon 2020, arXiv:2006.09011, table 3)
CORRECTOR_SNR = 0.16  # r (Song et al. 2021, arXiv:2011.13456, appendix G)


def langevin_rows(levels: Levels) -> list[Row]:
    """Annealed Langevin dynamics (Song & Ermon 2019, arXiv:1907.05600, algorithm 1): five steps at each level.

    δ is chosen for each level as technique 4 of Song & Ermon 2020 chooses one number for all of them: so that
    a point mass leaves the level with a variance as close as possible to the level's own.
    """
    rows: list[Row] = []
    for i, delta in enumerate(step_sizes(levels)):
        for k in range(1, LANGEVIN_STEPS + 1):
            last = k == LANGEVIN_STEPS
            rows.append(Row(i, i + last, [_langevin_update(levels, i, float(delta), rescale=last)]))
    return [*rows, _final_row(levels)]


def pc_rows(levels: Levels) -> list[Row]:
    """Predictor–corrector sampling (Song et al. 2021, algorithm 1): a Langevin step at a level, then an ancestral step.

    The paper's corrector (algorithm 4) is x̄' = x̄ + ε·∇log p + √(2ε)·z with ε = 2·(r·‖z‖/‖∇log p‖)². Here ‖z‖ is √d
    and ‖∇log p‖ is √d/ρ, its mean for a network that knows the noise: ε = 2·r²·ρ² for every image, so δ = 4·r².
    """
    rows: list[Row] = []
    for i in range(levels.steps - 1):
        rows.append(Row(i, i, [_langevin_update(levels, i, 4 * CORRECTOR_SNR**2, rescale=False)]))
        rows.append(Row(i, i + 1, [ancestral_update(levels, i)]))
    return [*rows, _final_row(levels)]


def step_sizes(levels: Levels) -> Float64:
    """δ of each level but the last, (N − 1,) in (0, 2).

    After T steps a point mass that arrived with w times the level's variance has
    v(δ) = (1 − δ/2)^(2T)·(w − A) + A times it, A = 1/(1 − δ/4). v has one minimum, found by ternary search.
    At the first level, where x_T is drawn, w is taken to be the same as at the second.
    """
    ratio = levels.ratio[:-1]
    if len(ratio) < 2:
        return np.zeros(0)
    drops = (ratio[:-1] / ratio[1:]) ** 2  # variance of each level over that of the next
    arriving = np.append(drops[0], drops[:-1])  # w of each level but the last
    low, high = np.zeros_like(arriving), np.full_like(arriving, 2.0)
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        falls = relative_variance(right, arriving) < relative_variance(left, arriving)
        low, high = np.where(falls, left, low), np.where(falls, high, right)
    return np.asarray((low + high) / 2, dtype=np.float64)


def relative_variance(delta: Float64, arriving: Float64) -> Float64:
    """v(δ) of `step_sizes`, in units of the level's own variance (Song & Ermon 2020, proposition 3)."""
    stationary = 1 / (1 - delta / 4)  # A: the variance after infinitely many steps
    contraction = (1 - delta / 2) ** (2 * LANGEVIN_STEPS)
    return np.asarray(contraction * (arriving - stationary) + stationary, dtype=np.float64)


def _langevin_update(levels: Levels, i: int, delta: float, *, rescale: bool) -> list[float]:
    """One Langevin step at level i: the weights of (x, x̂_0, ε̂, z). rescale: from α to the α of the next level."""
    scale = levels.alpha[i + 1] if rescale else levels.alpha[i]
    return [scale / levels.alpha[i] * (1 - delta / 2), scale * delta / 2, 0.0, scale * np.sqrt(delta) * levels.ratio[i]]


def _final_row(levels: Levels) -> Row:
    """x = x̂_0: Euler's step to ρ = 0."""
    last = levels.steps - 1
    return Row(last, last + 1, [euler_update(levels, last, 0.0)])
