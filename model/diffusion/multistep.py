"""Rows of the multistep samplers: each step fits a polynomial through the last few estimates.

Matrices M for `registers' = M · (registers, x̂_0, ε̂, z)`, x in the variance-preserving form
x_t = α·x_0 + σ·ε. ρ = σ/α and λ = log(α/σ); a prime marks the next level, h = λ' − λ. The first steps
have the order that the estimates so far allow. The step that ends without noise is of first order,
since λ' = ∞ there. An estimate or a register is written as a unit vector over M's columns, so
that the formulas below yield a row of M.
"""

from __future__ import annotations

import math

import numpy as np

from denoised.model.diffusion.grids import Levels
from denoised.model.diffusion.noise import Float64
from denoised.model.diffusion.plans import Row

# Weights of the newest ε̂, the one before, … (Liu et al. 2022, eq. 12), of orders one to four.
ADAMS_BASHFORTH: tuple[Float64, ...] = (
    np.array([1.0]),
    np.array([3.0, -1.0]) / 2,
    np.array([23.0, -16.0, 5.0]) / 12,
    np.array([55.0, -59.0, 37.0, -9.0]) / 24,
)
FEW_STEPS = 15  # below it DPM-Solver++(3M) takes the last step but one with order 2, as its authors' code does


def dpmpp_2m_rows(levels: Levels) -> list[Row]:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, arXiv:2211.01095, algorithm 2). Registers: x, the last x̂_0."""
    return _second_order_rows(levels, stochastic=False)


def dpmpp_2m_sde_rows(levels: Levels) -> list[Row]:
    """SDE-DPM-Solver++(2M), its stochastic form (Lu et al. 2022, arXiv:2211.01095). Registers: x, the last x̂_0."""
    return _second_order_rows(levels, stochastic=True)


def _second_order_rows(levels: Levels, *, stochastic: bool) -> list[Row]:
    rows: list[Row] = []
    for i in range(levels.steps):
        _, s, a_next, s_next = levels.interval(i)
        decay = levels.ratio[i + 1] / levels.ratio[i]  # e^(−h)
        # x' = σ'/σ·x + α'·(1 − e^(−h))·D; with noise σ'/σ·e^(−h)·x + α'·(1 − e^(−2h))·D + σ'·√(1 − e^(−2h))·z.
        shrink = decay**2 if stochastic else decay
        x = s_next / s * (decay if stochastic else 1.0)
        noise = s_next * np.sqrt(1 - decay**2) if stochastic else 0.0
        # D = (1 + w)·x̂_0 − w·(the last x̂_0), as in algorithm 2, w = 1/(2r).
        w = _extrapolation(levels, i) if i > 0 and s_next > 0 else 0.0
        gain = a_next * (1 - shrink)
        update = [x, -gain * w, gain * (1 + w), 0.0, noise]
        rows.append(Row(i, i + 1, [update, [0.0, 0.0, 1.0, 0.0, 0.0]]))
    return rows


def _extrapolation(levels: Levels, i: int) -> float:
    """1/(2·r_0) = h/(2·h_last): how far to follow the line through the last two x̂_0, to the middle of the step."""
    lam = levels.log_snr
    return float((lam[i + 1] - lam[i]) / (lam[i] - lam[i - 1]) / 2)


def dpmpp_3m_rows(levels: Levels, curvature: float = 2.0) -> list[Row]:
    """DPM-Solver++(3M): the parabola through the last three x̂_0, integrated exactly over the step.

    Lu et al. 2022 (arXiv:2211.01095), eq. 9 with three terms. Registers: x, the last two x̂_0.

    curvature: the factor on the second divided difference D_2. x̂_0'' = 2·D_2, so 2 gives third order;
    published code has 1, which gives second.
    """
    rows: list[Row] = []
    for i in range(levels.steps):
        _, s, a_next, s_next = levels.interval(i)
        decay = levels.ratio[i + 1] / levels.ratio[i]  # e^(−h)
        x0, previous = np.eye(6)[3], np.eye(6)[1:3]  # columns: x, two x̂_0 before, x̂_0, ε̂, z
        order = min(i + 1, 3 if levels.steps >= FEW_STEPS else levels.steps - i) if s_next > 0 else 1
        change = a_next * (1 - decay) * x0
        if order == 2:
            change += a_next * (1 - decay) * _extrapolation(levels, i) * (x0 - previous[0])
        elif order >= 3:
            change += a_next * _third_order_terms(levels, i, x0, previous, curvature)
        update = s_next / s * np.eye(6)[0] + change
        rows.append(Row(i, i + 1, [update.tolist(), x0.tolist(), previous[0].tolist()]))
    return rows


def _third_order_terms(levels: Levels, i: int, x0: Float64, previous: Float64, curvature: float) -> Float64:
    """The part of D_1 and D_2 in x'/α', as weights of the columns."""
    lam = levels.log_snr
    h = lam[i + 1] - lam[i]
    r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
    slope = (x0 - previous[0]) / r0  # divided differences over λ, in units of h
    d2 = (slope - (previous[0] - previous[1]) / r1) / (r0 + r1)
    d1 = slope + r0 * d2  # the derivative at the newest estimate
    linear = math.expm1(-h) / h + 1  # ∫ of e^(λ−λ')·(λ − λ_i)/h over the step
    quadratic = (math.expm1(-h) + h) / h**2 - 0.5  # −∫ of e^(λ−λ')·((λ − λ_i)/h)²/2
    return np.asarray(linear * d1 - curvature * quadratic * d2, dtype=np.float64)


def lms_rows(levels: Levels, order: int = 4) -> list[Row]:
    """The linear multistep method: Adams–Bashforth on dx̄/dρ = d = (x̄ − x̂_0)/ρ, x̄ = x/α, with unequal steps.

    Liu et al. 2022 (arXiv:2202.09778), section 3; `sample_lms` of k-diffusion. Registers: x, the last three d.
    """
    rows: list[Row] = []
    for i in range(levels.steps):
        a, _, a_next, _ = levels.interval(i)
        rho, rho_next = levels.ratio[i], levels.ratio[i + 1]
        columns = np.eye(order + 3)  # x, order − 1 slopes, x̂_0, ε̂, z
        slope = (columns[0] / a - columns[order]) / rho
        slopes = np.stack([slope, *columns[1:order]])  # the newest first
        available = min(i + 1, order)
        weights = _lagrange_integrals(levels.ratio[i - available + 1 : i + 1][::-1], rho, rho_next)
        update = a_next * (columns[0] / a + weights @ slopes[:available])
        rows.append(Row(i, i + 1, [update.tolist(), *slopes[:-1].tolist()]))
    return rows


def _lagrange_integrals(nodes: Float64, start: float, end: float) -> Float64:
    """∫ of each Lagrange polynomial of the nodes (at most four) from start to end.

    Degree 3 at most, so two-point Gauss–Legendre quadrature is exact.
    """
    points, quadrature_weights = np.polynomial.legendre.leggauss(2)
    at = start + (end - start) * (points + 1) / 2
    values = np.ones((len(nodes), 2))
    for j, node in enumerate(nodes):
        for other in np.delete(nodes, j):
            values[j] *= (at - other) / (node - other)
    return np.asarray(values @ quadrature_weights * (end - start) / 2, dtype=np.float64)


def plms_rows(levels: Levels) -> list[Row]:
    """PLMS: Adams–Bashforth on ε̂ up to order four, each combination followed as DDIM's step follows ε̂.

    Liu et al. 2022 (arXiv:2202.09778), eq. 9 and 12. The first step is taken twice, the second time with the mean of
    the ε̂ at both of its ends, so that N steps are N + 1 evaluations; a single step is one. From α = 0, where x̂_0 has
    no weight in x, the second time changes nothing. Registers: x, the last three ε̂.
    """
    rows: list[Row] = []
    x, *previous, x0, eps, _ = np.eye(7)  # columns: x, ε̂ of one to three evaluations before, x̂_0, ε̂, z
    for i in range(levels.steps):
        _, _, a_next, s_next = levels.interval(i)
        weights = ADAMS_BASHFORTH[min(i, 3)]
        slope = weights @ np.stack([eps, *previous])[: len(weights)]
        # DDIM's step along ε̂, then the part of the combination that is not ε̂.
        update = a_next * x0 + s_next * eps + (_slope_weight(levels, i) * (slope - eps) if i > 0 else 0.0)
        first_of_two = i == 0 and levels.steps > 1
        rows.append(Row(i, 0 if first_of_two else i + 1, [row.tolist() for row in (update, eps, *previous[:2])]))
        if first_of_two:
            corrected = x + (_slope_weight(levels, 0) * (eps - previous[0]) / 2 if levels.alpha[0] > 0 else 0.0)
            rows.append(Row(1, 1, [row.tolist() for row in (corrected, *previous)]))
    return rows


def _slope_weight(levels: Levels, i: int) -> float:
    """The weight of ε̂ in DDIM's step α'/α·x + (σ' − α'·σ/α)·ε̂ (Liu et al. 2022, eq. 9)."""
    a, s, a_next, s_next = levels.interval(i)
    return float(s_next - a_next * s / a)


def unipc_rows(levels: Levels, order: int = 2) -> list[Row]:
    """UniPC-p (Zhao et al. 2023, arXiv:2302.04867, algorithms 5 and 6, B_2(h)), on x̂_0; the order is p + 1.

    The estimate at a level first corrects the x it was made at (UniC), then serves the prediction of the
    next (UniP): one evaluation a step. Registers: x (predicted), the last x (corrected), the last p x̂_0.
    """
    rows: list[Row] = []
    width = order + 2  # registers
    predicted_order = 0  # of the last prediction; its correction uses the same estimates
    for i in range(levels.steps):
        columns = np.eye(width + 3)
        x0, previous = columns[width], columns[2:width]
        corrected = columns[0]
        if i > 0:
            corrected = _unipc_update(levels, i - 1, columns[1], previous[:predicted_order], x0)
        predicted_order = min(order, i + 1, levels.steps - i)
        estimates = np.stack([x0, *previous])
        predicted = _unipc_update(levels, i, corrected, estimates[:predicted_order], None)
        registers = [predicted, corrected, *estimates[:order]]
        rows.append(Row(i, i + 1, [register.tolist() for register in registers]))
    return rows


def _unipc_update(levels: Levels, i: int, x: Float64, estimates: Float64, next_estimate: Float64 | None) -> Float64:
    """From x at level i to level i + 1, as weights of the columns (eq. 3, 8 and 9).

    estimates: x̂_0 at levels i, i − 1, …; next_estimate: at level i + 1, for the corrector; None predicts.
    """
    _, s, a_next, s_next = levels.interval(i)
    lam = levels.log_snr
    h = lam[i + 1] - lam[i]
    b = -math.expm1(-h)  # 1 − e^(−h) = −B_2(−h), B_2(h) = e^h − 1
    change = b * estimates[0]
    nodes = [(lam[i - k] - lam[i]) / h for k in range(1, len(estimates))]  # r_k
    differences = [(m - estimates[0]) / r for m, r in zip(estimates[1:], nodes, strict=True)]  # D_k/r_k
    if next_estimate is not None:
        nodes, differences = [*nodes, 1.0], [*differences, next_estimate - estimates[0]]
    weights = _unipc_weights(h, nodes)
    for weight, difference in zip(weights, differences, strict=True):
        change = change + b * weight * difference
    return np.asarray(s_next / s * x + a_next * change, dtype=np.float64)


def _unipc_weights(h: float, nodes: list[float]) -> Float64:
    """The solution a of R(h)·a = φ(h) (eq. 10); a single weight is ½ (the paper's appendix F)."""
    if len(nodes) <= 1:
        return np.full(len(nodes), 0.5)
    powers = np.vander(nodes, increasing=True).T  # R: row k holds the r_j^k
    phi = math.expm1(-h) / -h - 1  # g·φ_2(g) at g = −h, where φ_1(g) = (e^g − 1)/g and φ_(k+1) = (φ_k − 1/k!)/g
    moments = []
    for k in range(1, len(nodes) + 1):
        moments.append(phi * math.factorial(k) / math.expm1(-h))
        phi = phi / -h - 1 / math.factorial(k + 1)
    return np.asarray(np.linalg.solve(powers, moments), dtype=np.float64)
