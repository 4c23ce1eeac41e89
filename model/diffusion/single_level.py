"""One noise level of a model, and the plan of a single estimate there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan

X0, EPSILON, X_T = range(3)  # registers after the plan's only row


@dataclass(frozen=True)
class SingleLevel:
    """A noise level: t in timesteps, whole or not, with α² + σ² = 1."""

    t: float
    alpha: float
    sigma: float

    @classmethod
    def of_time(cls, schedule: NoiseSchedule, t: float) -> SingleLevel:
        """The level at a time t in 0 … T − 1."""
        alpha, sigma = schedule.levels_at(np.array([t], dtype=np.float64))
        return cls(t, float(alpha[0]), float(sigma[0]))

    @classmethod
    def of_ratio(cls, schedule: NoiseSchedule, ratio: float) -> SingleLevel:
        """The level of ρ = σ/α > 0; its time is interpolated linearly in log ρ, as in `NoiseSchedule.levels_at`."""
        finite = schedule.alpha > 0
        table = np.log(schedule.sigma[finite] / schedule.alpha[finite])
        alpha = 1 / math.sqrt(1 + ratio**2)
        return cls(float(np.interp(math.log(ratio), table, np.arange(len(table)))), alpha, ratio * alpha)

    @property
    def ratio(self) -> float | None:
        """ρ = σ/α; None where α = 0."""
        return self.sigma / self.alpha if self.alpha > 0 else None


@lru_cache(maxsize=256)
def estimate_plan(level: SingleLevel) -> Plan:
    """The plan of one row that keeps x̂_0, ε̂ and x_t, in this order, as registers. x̂_0 is not clipped."""
    matrix = np.zeros((1, 3, 6))  # columns: three registers (x_t is the first); x̂_0, ε̂, z
    matrix[0, X0, 3], matrix[0, EPSILON, 4], matrix[0, X_T, 0] = 1.0, 1.0, 1.0
    return _plan("score", level, matrix)


@lru_cache(maxsize=256)
def no_evaluations(level: SingleLevel) -> Plan:
    """The plan of no row: what it begins with is the result."""
    return _plan("noise", level, np.zeros((0, 1, 4)))


def _plan(name: str, level: SingleLevel, matrices: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Plan:
    rows = len(matrices)
    return Plan(
        sampler=name,
        t=np.full(rows, level.t),
        alpha=np.full(rows, level.alpha),
        sigma=np.full(rows, level.sigma),
        matrices=matrices,
        step=tuple(range(1, rows + 1)),
        log_variance_range=np.zeros(rows),
        clips=False,
    )
