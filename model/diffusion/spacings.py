"""How noise levels ρ = σ/α are spaced, where they do not have to be those of training timesteps.

Each formula gives N falling values between two bounds; a plan ends at ρ = 0 after them. This module knows nothing of
the families of samplers, which have bounds of their own (`model.diffusion.grids`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from denoised.model.diffusion.noise import Float64
from denoised.model.diffusion.published_levels import PUBLISHED_LEVELS, published_ratios, published_spacings
from denoised.model.errors import PlanError

KARRAS_EXPONENT = 7.0
BETA_SHAPE = 0.6  # of both ends of the Beta distribution (Lee et al. 2024)
EDM_BOUNDS = (0.002, 80.0)  # Karras et al. 2022, table 1
GEOMETRIC_BOUNDS = (0.1, 40.0)  # docs/decisions.md has the measurement
# Samplers divide by differences of log ρ. 1,000 levels of the beta distribution between bounds of the first ratio have
# neighbors of the second, whose difference keeps eight digits in float64.
MIN_BOUNDS_RATIO, MIN_LEVEL_RATIO = 1.01, 1 + 1e-7
# On schedules that go beyond ρ = STEEP_RATIO, two-stage solvers and the spacings of diffusers start at
# ρ = CAPPED_RATIO; see `start_of`.
STEEP_RATIO, CAPPED_RATIO = 200.0, 20.0


def karras_ratios(lowest: float, highest: float, steps: int) -> Float64:
    """`steps` values of ρ, falling from highest to lowest (Karras et al. 2022, eq. 5, exponent 7)."""
    ramp = np.linspace(0, 1, steps)
    # (σ_max^(1/7) + i/(N − 1)·(σ_min^(1/7) − σ_max^(1/7)))^7
    low, high = lowest ** (1 / KARRAS_EXPONENT), highest ** (1 / KARRAS_EXPONENT)
    return np.asarray((high + ramp * (low - high)) ** KARRAS_EXPONENT, dtype=np.float64)


def geometric_ratios(lowest: float, highest: float, steps: int) -> Float64:
    """`steps` values of ρ, uniform in log ρ, falling from highest to lowest."""
    return np.asarray(np.exp(np.linspace(math.log(highest), math.log(lowest), steps)), dtype=np.float64)


def beta_ratios(lowest: float, highest: float, steps: int) -> Float64:
    """`steps` values of ρ at the quantiles 1 … 0 of Beta(.6, .6), dense at both ends.

    Source: Lee et al. 2024 (arXiv:2407.12173), as diffusers has it: in ρ, not in time.
    """
    quantiles = np.array([beta_quantile(q, BETA_SHAPE) for q in 1 - np.linspace(0, 1, steps)])
    return np.asarray(lowest + quantiles * (highest - lowest), dtype=np.float64)


def beta_quantile(q: float, shape: float) -> float:
    """The x in 0 … 1 below which a Beta(shape, shape) variable is with probability q, to rounding.

    The distribution is symmetric, so x ≤ ½ is enough, where the series of the incomplete beta function
    x^a·Σ (1 − a)_n/(n!·(a + n))·x^n (DLMF 8.17.7) gains a bit with every term.
    """
    if q > 0.5:
        return 1 - beta_quantile(1 - q, shape)
    if q <= 0:
        return 0.0
    whole = math.exp(2 * math.lgamma(shape) - math.lgamma(2 * shape))  # B(a, a)
    x = (q * shape * whole) ** (1 / shape)  # the first term of the series alone
    for _ in range(100):
        # Newton's method in log x, where the distribution function is nearly a straight line.
        error = _incomplete_beta(x, shape) / whole - q
        change = -error / (x**shape * (1 - x) ** (shape - 1) / whole)
        x = min(x * math.exp(change), 0.5)
        if abs(change) < 1e-15:
            break
    return x


def _incomplete_beta(x: float, shape: float) -> float:
    """B_x(a, a) for x ≤ ½."""
    total, coefficient = 0.0, 1.0
    for n in range(60):
        total += coefficient / (shape + n)
        coefficient *= (n + 1 - shape) / (n + 1) * x
    return float(x**shape * total)


FORMULAS: dict[str, Callable[[float, float, int], Float64]] = {
    "karras": karras_ratios,
    "exponential": geometric_ratios,
    "beta": beta_ratios,
    "edm": karras_ratios,
    "geometric": geometric_ratios,
}
# Uniform in time from the last timestep toward 0, between timesteps on a logarithmic scale.
SGM_UNIFORM = "sgm_uniform"
RATIO_SPACINGS = (*FORMULAS, SGM_UNIFORM)


@dataclass(frozen=True)
class RatioSpacing:
    """Which noise levels a plan visits instead of training timesteps.

    Attributes:
        name: one of `RATIO_SPACINGS` or `PUBLISHED_LEVELS`.
        sigma_min, sigma_max: the lowest and the highest ρ; None: those of the spacing, see `bounds`.
        sigmas: the levels ρ themselves, falling, without the 0 at the end; None: by the formula of the name.
    """

    name: str = "karras"
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigmas: tuple[float, ...] | None = None

    @property
    def names_start(self) -> bool:
        """Whether a request says which level is the first."""
        return self.sigmas is not None or self.sigma_max is not None

    @property
    def highest_named(self) -> float:
        """The highest level that a request names; 0 if it names none."""
        return max(self.sigma_min or 0.0, self.sigma_max or 0.0, *(self.sigmas or (0.0,)))

    def ratios(self, table: Float64, steps: int, first: float, last: float) -> Float64:
        """`steps` values of ρ, falling.

        table: ρ of every timestep, rising. first, last: ρ at the ends of the grid that the sampler visits otherwise.

        Raises:
            PlanError: for levels or bounds outside the table, or levels that do not fall.
        """
        if self.sigmas is not None:
            return self._own(table, steps)
        bounded = self.sigma_min is not None or self.sigma_max is not None
        if self.name in PUBLISHED_LEVELS and not bounded:
            return self._published(table, steps)
        if self.name == SGM_UNIFORM and not bounded:
            t = np.linspace(len(table) - 1, 0, steps + 1)[:-1]
            return np.asarray(np.exp(np.interp(t, np.arange(len(table)), np.log(table))), dtype=np.float64)
        if self.name not in FORMULAS:
            raise PlanError(f"spacing = {self.name!r} takes no bounds (those that do: {', '.join(FORMULAS)})")
        low, high = self.bounds(table, first, last)
        if low == high and steps > 1:  # all of the grid lies above the start of the spacing
            low = float(table[0])
        return FORMULAS[self.name](low, high, steps)

    def bounds(self, table: Float64, first: float, last: float) -> tuple[float, float]:
        """The lowest and the highest ρ. A spacing with bounds of its own keeps them where the schedule has them."""
        lowest, highest = float(table[0]), float(table[-1])
        high = start_of(first, highest)
        low = min(last, high)
        if self.name in ("edm", "geometric"):
            own = EDM_BOUNDS if self.name == "edm" else GEOMETRIC_BOUNDS
            low, high = max(own[0], lowest), min(own[1], highest)
            if low >= high:  # a schedule on one side of them
                low, high = lowest, highest
        if self.sigma_min is None and self.sigma_max is None:
            return low, high
        return self._named_bounds(low, high, lowest, highest)

    def _named_bounds(self, low: float, high: float, lowest: float, highest: float) -> tuple[float, float]:
        """`low` and `high` where neither is named; one that lies beyond the named one is the schedule's end."""
        if self.sigma_min is not None:
            low, high = self.sigma_min, high if high >= MIN_BOUNDS_RATIO * self.sigma_min else highest
        if self.sigma_max is not None:
            kept = MIN_BOUNDS_RATIO * low <= self.sigma_max or self.sigma_min is not None
            low, high = low if kept else lowest, self.sigma_max
        if not (lowest <= low and MIN_BOUNDS_RATIO * low <= high <= highest):
            raise PlanError(
                f"sigma_min = {low:g} and sigma_max = {high:g} do not rise by a factor of {MIN_BOUNDS_RATIO} within "
                f"{lowest:g} … {highest:g}"
            )
        return low, high

    def _published(self, table: Float64, steps: int) -> Float64:
        if self.name not in published_spacings(table):
            high, low = PUBLISHED_LEVELS[self.name][0], PUBLISHED_LEVELS[self.name][-1]
            raise PlanError(
                f"spacing = {self.name!r} is for noise levels of {low:g} … {high:g} (the schedule's: {table[0]:.4g} … "
                f"{table[-1]:.4g})"
            )
        return np.clip(published_ratios(self.name, steps), table[0], table[-1])

    def _own(self, table: Float64, steps: int) -> Float64:
        assert self.sigmas is not None
        own = np.asarray(self.sigmas, dtype=np.float64)
        falls = (own[:-1] >= MIN_LEVEL_RATIO * own[1:]).all()
        if len(own) != steps or not falls or not table[0] <= own[-1] <= own[0] <= table[-1]:
            raise PlanError(f"sigmas are not {steps} falling values within {table[0]:g} … {table[-1]:g}")
        return own


def start_of(first: float, highest: float) -> float:
    """The highest ρ of a spacing, for a grid that starts at ρ = first on a schedule that goes up to ρ = highest.

    From ρ = 20,000, as on cosine schedules, Karras' formula puts 70 % of the levels above ρ = 20, where x_t holds
    nothing of the image. Karras et al. 2022 start at ρ = 80.
    """
    return min(first, CAPPED_RATIO) if highest > STEEP_RATIO else first
