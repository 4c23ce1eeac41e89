"""Noise levels ρ = σ/α that others have published for families of models, as data."""

from __future__ import annotations

import numpy as np

from denoised.model.diffusion.noise import Float64

# Ten levels and the end, optimized by the authors for each family: Sabour et al. 2024, "Align Your Steps"
# (arXiv:2404.14507), "Optimized Schedules" of its appendix, also on
# https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html.
PUBLISHED_LEVELS: dict[str, tuple[float, ...]] = {
    "ays_sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),  # Stable Diffusion 1.x
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
# They are rounded to three decimals: the ends of Stable Diffusion's schedule are 0.02917 and 14.6146.
ROUNDING = 0.01  # of log ρ


def published_ratios(name: str, steps: int) -> Float64:
    """`steps` values of ρ, falling, without the end: for another number of steps, log ρ is linear between the levels.

    That is the interpolation that the authors recommend on their page.
    """
    levels = np.log(PUBLISHED_LEVELS[name])
    position = np.linspace(0, len(levels) - 1, steps + 1)[:-1]
    return np.asarray(np.exp(np.interp(position, np.arange(len(levels)), levels)), dtype=np.float64)


def published_spacings(table: Float64) -> dict[str, list[float]]:
    """The published levels that were made for a schedule, by name: those with its ends.

    table: ρ of every timestep, rising.
    """
    ends = np.log([table[-1], table[0]])
    return {
        name: list(levels)
        for name, levels in PUBLISHED_LEVELS.items()
        if np.abs(np.log([levels[0], levels[-1]]) - ends).max() <= ROUNDING
    }
