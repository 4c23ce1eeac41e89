"""Orders of convergence, from exact starting values (mathematics.md, orders of convergence).

The probability-flow ODE of Gaussian data N(μ, s²) has the solution
x̄(ρ) = μ + (x̄ − μ)·√((s² + ρ²)/(s² + ρ_0²)), x̄ = x/α. The error is measured at the lowest of levels that
all have noise; the memory of a multistep solver is filled with exact values first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from denoised.model.diffusion.grids import Levels
from denoised.model.diffusion.multistep import dpmpp_2m_rows, dpmpp_3m_rows, lms_rows, unipc_rows
from denoised.model.diffusion.plans import Plan, Row, advance
from denoised.model.diffusion.predictions import Estimate
from denoised.model.diffusion.singlestep import dpm_2_rows, euler_rows, heun_rows

MU, S, HIGH, LOW, START = 0.3, 0.5, 20.0, 0.05, 3.0
EXTRA_LEVELS = 4  # below LOW, so that no row lowers its order for the end


@dataclass(frozen=True)
class Solver:
    """A solver and its order.

    Attributes:
        memory: the number of evaluations that start from exact values.
        corrects: whether register 1 is the last x, corrected.
        midpoints: whether its levels include midpoints.
    """

    rows: Callable[[Levels], list[Row]]
    order: float
    memory: int = 0
    corrects: bool = False
    midpoints: bool = False


SOLVERS = {
    "euler": Solver(euler_rows, 1),
    "heun": Solver(heun_rows, 2),
    "dpm_2": Solver(dpm_2_rows, 2, midpoints=True),
    "dpmpp_2m": Solver(dpmpp_2m_rows, 2, memory=1),
    "dpmpp_3m": Solver(dpmpp_3m_rows, 3, memory=2),
    "dpmpp_3m as published": Solver(lambda levels: dpmpp_3m_rows(levels, curvature=1.0), 2, memory=2),
    "lms of 2": Solver(lambda levels: lms_rows(levels, 2), 2, memory=1),
    "lms of 3": Solver(lambda levels: lms_rows(levels, 3), 3, memory=2),
    "lms": Solver(lms_rows, 4, memory=3),
    "unipc of 1": Solver(lambda levels: unipc_rows(levels, 1), 2, memory=1, corrects=True),
    "unipc": Solver(lambda levels: unipc_rows(levels, 2), 3, memory=2, corrects=True),
    "unipc_3": Solver(lambda levels: unipc_rows(levels, 3), 4, memory=3, corrects=True),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_has_its_order(name: str) -> None:
    """mathematics.md, traps 45 and 46: the slope of the error from 192 to 384 steps, within 0.3 of theory."""
    errors = [error(SOLVERS[name], steps) for steps in (24, 48, 96, 192, 384)]
    slopes = -np.diff(np.log2(errors))
    assert (slopes > SOLVERS[name].order - 0.6).all()
    assert slopes[-1] == pytest.approx(SOLVERS[name].order, abs=0.3)


def test_the_third_order_solver_beats_the_second_order_and_the_published_one() -> None:
    second, third, published = (error(SOLVERS[name], 24) for name in ("dpmpp_2m", "dpmpp_3m", "dpmpp_3m as published"))
    assert third < published
    assert third < second


def error(solver: Solver, steps: int) -> float:
    """|x̄ − exact| at LOW."""
    levels = geometric_levels(steps, stages=2 if solver.midpoints else 1)
    plan = Plan.from_rows("test", levels, solver.rows(levels))
    registers = torch.zeros(1, plan.registers, 1, 1, 1, dtype=torch.float64)
    for row in range(plan.evaluations):
        alpha, sigma = float(plan.alpha[row]), float(plan.sigma[row])
        if row <= solver.memory:
            registers[:, 0] = alpha * exact(sigma / alpha)
        x = registers[:, 0]
        x0 = (alpha * S**2 * x + sigma**2 * MU) / (alpha**2 * S**2 + sigma**2)
        matrices = torch.from_numpy(plan.matrices[row])[None]
        registers = advance(registers, Estimate(x0, torch.zeros_like(x)), torch.zeros_like(x), matrices)
        if solver.corrects and row <= solver.memory:
            registers[:, 1] = alpha * exact(sigma / alpha)
        if plan.step[row] == steps:
            break
    end = 1 / np.sqrt(1 + LOW**2)
    return abs(float(registers[0, 0]) / end - exact(LOW))


def exact(ratio: float) -> float:
    return MU + (START - MU) * float(np.sqrt((S**2 + ratio**2) / (S**2 + HIGH**2)))


def geometric_levels(steps: int, stages: int) -> Levels:
    """HIGH … LOW in `steps` equal steps of λ, with midpoints if there are two stages, and `EXTRA_LEVELS` below."""
    factor = (LOW / HIGH) ** (1 / (stages * steps))
    ratio = HIGH * factor ** np.arange(stages * (steps + EXTRA_LEVELS))
    alpha = 1 / np.sqrt(1 + ratio**2)
    return Levels(np.zeros(len(ratio) - 1), alpha, ratio * alpha)
