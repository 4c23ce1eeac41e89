"""Fitting the noise levels of a plan to the pictures that a model makes with them.

A list of levels has log ρ_0 and the logarithms of the gaps log ρ_i − log ρ_(i+1) as coordinates, so every point is a
falling list. The Nelder-Mead method finds the point with the smallest loss: it needs no derivatives of the sampler, and
every trial uses the same seeds, so the loss is a function of the levels alone.

Sources: that levels can be learned for a model, Watson et al. 2022 (arXiv:2202.05830) and Tong et al. 2024 (LD3,
arXiv:2405.15506); the method, Nelder and Mead 1965 with the coefficients of Gao and Han 2012.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from denoised.model.diffusion.noise import Float64
from denoised.model.diffusion.plans import Plan
from denoised.model.evaluation.requirements import require_packages

TOP_CHANGE, GAP_CHANGE = 0.12, 0.25  # of the first trials: log ρ_0, and the logarithm of a gap
DIGITS = 4  # of a level: more change no picture that anybody could tell apart

Loss = Callable[[tuple[float, ...]], float]


@dataclass(frozen=True)
class LevelFit:
    """The best levels that were found.

    Attributes:
        sigmas: the levels ρ, falling.
        loss: theirs; start_loss: that of the levels at the start.
        trials: how many lists were measured.
    """

    sigmas: tuple[float, ...]
    loss: float
    start_loss: float
    trials: int


def fit_levels(
    start: Sequence[float],
    loss: Loss,
    bounds: tuple[float, float],
    trials: int,
    report: Callable[[LevelFit], None] = lambda fit: None,
) -> LevelFit:
    """Find levels with a smaller loss.

    start: the levels of the first trial, falling.
    bounds: the lowest and the highest level ρ that the schedule has.
    trials: the most lists that are measured, at least 1.
    report: called after each trial with the best levels so far.

    Raises:
        EvaluationError: if scipy is not installed.
    """
    require_packages("scipy")
    from scipy.optimize import minimize

    first = _rounded(start)
    found = LevelFit(first, loss(first), math.nan, 1)
    found = LevelFit(first, found.loss, found.loss, 1)
    report(found)

    def measure(point: Float64) -> float:
        nonlocal found
        sigmas = _rounded(levels_at(point))
        if not (bounds[0] <= sigmas[-1] and sigmas[0] <= bounds[1]) or len(set(sigmas)) < len(sigmas):
            return math.inf
        value = loss(sigmas)
        best = (sigmas, value) if value < found.loss else (found.sigmas, found.loss)
        found = LevelFit(*best, found.start_loss, found.trials + 1)
        report(found)
        return value

    origin = coordinates(start)
    simplex = np.vstack([origin, origin + np.diag([TOP_CHANGE, *[GAP_CHANGE] * (len(start) - 1)])])
    if trials > 1:
        options = {"maxfev": trials - 1, "initial_simplex": simplex, "adaptive": len(start) > 1}
        minimize(measure, origin, method="Nelder-Mead", options=options)
    return found


def coordinates(sigmas: Sequence[float]) -> Float64:
    """The point of a falling list of levels: log ρ_0, then the logarithm of each gap of log ρ."""
    logs = np.log(np.asarray(sigmas, dtype=np.float64))
    return np.concatenate([logs[:1], np.log(-np.diff(logs))])


def levels_at(point: Float64) -> Float64:
    """The inverse of `coordinates`."""
    gaps = np.concatenate([[0.0], np.exp(point[1:])])
    return np.asarray(np.exp(point[0] - np.cumsum(gaps)), dtype=np.float64)


def gaussian_deviation(plan: Plan, s: float) -> float:
    """The standard deviation of x_0 at the end of a plan whose denoiser is exact for data of N(0, s²).

    An exact sampler ends at s. The estimates are linear in x: x̂_0 = α·s²·x/v and ε̂ = σ·x/v with v = α²·s² + σ². So
    the covariance C of the registers follows the plan's rows: C' = (M·A)·C·(M·A)ᵀ + m_z·m_zᵀ.
    """
    count = plan.registers
    covariance = np.zeros((count, count))
    covariance[0, 0] = plan.initial_scale**2
    for alpha, sigma, matrix in zip(plan.alpha, plan.sigma, plan.matrices, strict=True):
        variance = alpha**2 * s**2 + sigma**2
        columns = np.vstack([np.eye(count), np.zeros((2, count))])  # (R + 2, R): registers, x̂_0, ε̂
        columns[count, 0], columns[count + 1, 0] = alpha * s**2 / variance, sigma / variance
        step, noise = matrix[:, :-1] @ columns, matrix[:, -1:]
        covariance = step @ covariance @ step.T + noise @ noise.T
    return float(math.sqrt(covariance[0, 0]))


def _rounded(sigmas: Sequence[float] | Float64) -> tuple[float, ...]:
    return tuple(float(f"{sigma:.{DIGITS}g}") for sigma in sigmas)
