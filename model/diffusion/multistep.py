"""Rows of the samplers that remember: each step fits a polynomial through the last few estimates.

Matrices M for `registers' = M · (registers, x̂_0, ε̂, z)`, x in the variance-preserving form
x_t = α·x_0 + σ·ε. ρ = σ/α and λ = log(α/σ); a prime marks the next level, h = λ' − λ. Where
fewer estimates are there yet, the order is as high as they allow; the step that ends without
noise is of first order, since λ' = ∞ there.
"""

from __future__ import annotations

import math

import numpy as np

from denoised.model.diffusion.grids import Levels
from denoised.model.diffusion.noise import Float64
from denoised.model.diffusion.plans import Row

FEW_STEPS = 15  # below it DPM-Solver++(3M) lowers the order of the last step but one, as its authors' code does


def dpmpp_2m_rows(levels: Levels) -> list[Row]:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, arXiv:2211.01095, algorithm 2). Registers: x, the last x̂_0."""
    return _midpoint(levels, stochastic=False)


def dpmpp_2m_sde_rows(levels: Levels) -> list[Row]:
    """Its stochastic form, SDE-DPM-Solver++(2M) (the same, section 5). Registers: x, the last x̂_0."""
    return _midpoint(levels, stochastic=True)


def _midpoint(levels: Levels, *, stochastic: bool) -> list[Row]:
    rows: list[Row] = []
    for i in range(levels.steps):
        _, s, a_next, s_next = levels.around(i)
        decay = levels.ratio[i + 1] / levels.ratio[i]  # e^(−h)
        shrink = decay**2 if stochastic else decay
        x = s_next / s * (decay if stochastic else 1.0)
        noise = s_next * np.sqrt(1 - decay**2) if stochastic else 0.0
        slope = _slope(levels, i) if i > 0 and s_next > 0 else 0.0
        gain = a_next * (1 - shrink)
        update = [x, -gain * slope, gain * (1 + slope), 0.0, noise]
        rows.append(Row(i, i + 1, [update, [0.0, 0.0, 1.0, 0.0, 0.0]]))
    return rows


def _slope(levels: Levels, i: int) -> float:
    """1/(2·r_0): how far the line through the last two x̂_0 is followed, to the middle of the step."""
    lam = levels.log_snr
    return float((lam[i + 1] - lam[i]) / (lam[i] - lam[i - 1]) / 2)


def dpmpp_3m_rows(levels: Levels, curvature: float = 2.0) -> list[Row]:
    """DPM-Solver++(3M): the parabola through the last three x̂_0, integrated exactly over the step.

    (The same, eq. 9 with n = 3.) Registers: x, the last two x̂_0.

    curvature: what the second divided difference D_2 is multiplied with. x̂_0'' = 2·D_2, so 2 gives
    third order; published code has 1, which gives second.
    """
    rows: list[Row] = []
    for i in range(levels.steps):
        _, s, a_next, s_next = levels.around(i)
        decay = levels.ratio[i + 1] / levels.ratio[i]  # e^(−h)
        x0, held = np.eye(6)[3], np.eye(6)[1:3]
        order = min(i + 1, 3 if levels.steps >= FEW_STEPS else levels.steps - i) if s_next > 0 else 1
        change = a_next * (1 - decay) * x0
        if order == 2:
            change += a_next * (1 - decay) * _slope(levels, i) * (x0 - held[0])
        elif order >= 3:
            change += a_next * _parabola(levels, i, x0, held, curvature)
        update = s_next / s * np.eye(6)[0] + change
        rows.append(Row(i, i + 1, [update.tolist(), x0.tolist(), held[0].tolist()]))
    return rows


def _parabola(levels: Levels, i: int, x0: Float64, held: Float64, curvature: float) -> Float64:
    """What D_1 and D_2 add to x'/α', as weights of the columns."""
    lam = levels.log_snr
    h = lam[i + 1] - lam[i]
    near, far = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h  # r_0, r_1
    first = (x0 - held[0]) / near
    bend = (first - (held[0] - held[1]) / far) / (near + far)  # D_2
    linear = math.expm1(-h) / h + 1
    quadratic = (math.expm1(-h) + h) / h**2 - 0.5
    return np.asarray(linear * (first + near * bend) - curvature * quadratic * bend, dtype=np.float64)


def lms_rows(levels: Levels, order: int = 4) -> list[Row]:
    """The linear multistep method on dx̄/dρ = d = (x̄ − x̂_0)/ρ, x̄ = x/α: Adams–Bashforth on unequal steps.

    (Liu et al. 2022, arXiv:2202.09778, section 3; `sample_lms` of k-diffusion.) Registers: x, the last three d.
    """
    rows: list[Row] = []
    for i in range(levels.steps):
        a, _, a_next, _ = levels.around(i)
        now, following = levels.ratio[i], levels.ratio[i + 1]
        columns = np.eye(order + 3)
        slope = (columns[0] / a - columns[order]) / now
        slopes = np.stack([slope, *columns[1:order]])
        known = min(i + 1, order)
        weights = _integrals(levels.ratio[i - known + 1 : i + 1][::-1], now, following)
        update = a_next * (columns[0] / a + weights @ slopes[:known])
        rows.append(Row(i, i + 1, [update.tolist(), *slopes[:-1].tolist()]))
    return rows


def _integrals(nodes: Float64, start: float, end: float) -> Float64:
    """∫ of each Lagrange polynomial on the nodes (at most four), exact by Gauss–Legendre with two points."""
    points, shares = np.polynomial.legendre.leggauss(2)
    at = start + (end - start) * (points + 1) / 2
    values = np.ones((len(nodes), 2))
    for j, node in enumerate(nodes):
        for other in np.delete(nodes, j):
            values[j] *= (at - other) / (node - other)
    return np.asarray(values @ shares * (end - start) / 2, dtype=np.float64)


def unipc_rows(levels: Levels, order: int = 2) -> list[Row]:
    """UniPC-p (Zhao et al. 2023, arXiv:2302.04867, algorithms 5 and 6, B_2(h)), on x̂_0; order p + 1.

    The estimate at a level first corrects the x that it was made at, then serves the prediction
    of the next. Registers: x (predicted), the last x (corrected), the last p x̂_0.
    """
    rows: list[Row] = []
    width = order + 2
    used = 0  # the order of the last prediction, that its correction has too
    for i in range(levels.steps):
        columns = np.eye(width + 3)
        x0, held = columns[width], columns[2:width]
        corrected = columns[0]
        if i > 0:
            corrected = _unipc_update(levels, i - 1, columns[1], held[:used], x0)
        used = min(order, i + 1, levels.steps - i)
        estimates = np.stack([x0, *held])
        predicted = _unipc_update(levels, i, corrected, estimates[:used], None)
        registers = [predicted, corrected, *estimates[:order]]
        rows.append(Row(i, i + 1, [register.tolist() for register in registers]))
    return rows


def _unipc_update(levels: Levels, i: int, x: Float64, estimates: Float64, ahead: Float64 | None) -> Float64:
    """From x at level i to level i + 1, as weights of the columns (eq. 3, 8 and 9).

    estimates: x̂_0 at levels i, i − 1, …; ahead: that of level i + 1, for the corrector.
    """
    _, s, a_next, s_next = levels.around(i)
    lam = levels.log_snr
    h = lam[i + 1] - lam[i]
    b = -math.expm1(-h)  # −B_2
    change = b * estimates[0]
    nodes = [(lam[i - k] - lam[i]) / h for k in range(1, len(estimates))]
    differences = [(m - estimates[0]) / r for m, r in zip(estimates[1:], nodes, strict=True)]
    if ahead is not None:
        nodes, differences = [*nodes, 1.0], [*differences, ahead - estimates[0]]
    for weight, difference in zip(_unipc_weights(h, nodes, correct=ahead is not None), differences, strict=True):
        change = change + b * weight * difference
    return np.asarray(s_next / s * x + a_next * change, dtype=np.float64)


def _unipc_weights(h: float, nodes: list[float], *, correct: bool) -> Float64:
    """The solution of R(h)·a = φ(h) (eq. 10); a single weight is ½ (the paper's appendix F)."""
    if len(nodes) <= 1:
        return np.full(len(nodes), 0.5)
    powers = np.vander(nodes, increasing=True).T
    phi = math.expm1(-h) / -h - 1
    moments = []
    for k in range(1, len(nodes) + 1):
        moments.append(phi * math.factorial(k) / math.expm1(-h))
        phi = phi / -h - 1 / math.factorial(k + 1)
    return np.asarray(np.linalg.solve(powers, moments), dtype=np.float64)
