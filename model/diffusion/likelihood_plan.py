"""The likelihood of a picture as a plan: the probability-flow ODE and its divergence, linear in what is known.

In u = log(σ/α) the ODE is dx/du = σ·(ε̂ − σ·x), and along it

    log p(x̄ at ρ_min) = log p(x̄ at ρ_max) + ∫ σ·∇·ε̂ du,    x̄ = x/α, ρ = σ/α

(`model.evaluation.likelihood` has the derivation). Hutchinson's trace for one vector v of random signs needs
vᵀ(∂ε̂/∂x)v, here as a central difference along v:

    σ·vᵀ(∂ε̂/∂x)v ≈ σ·vᵀ(ε̂(x + h·v) − ε̂(x − h·v))/(2h),    h = DIFFERENCE·σ

v stays the same along the whole path, so the integral is vᵀ·G with G = Σ w·σ·(ε̂₊ − ε̂₋)/(2h), and G is linear in the
estimates. A step therefore is four rows of a plan like any sampler's: x, x + h·v, x − h·v, and the predicted x at the
next level. Its images share batches with those of ordinary jobs, and are resumed like them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan

N = TypeVar("N", float, Tensor)

DIFFERENCE = 0.05  # h/σ of the central difference
BYTE_WIDTH = 2 / 255  # of one byte value in [−1, 1], since bytes are k/127.5 − 1

# Registers: what the network sees, x, the signs v, the accumulated differences G, the last step's slope, the slope.
SEEN, STATE, SIGNS, DIFFERENCES, LAST, SLOPE = range(6)
REGISTERS = 6
EPSILON = REGISTERS + 1  # the column of ε̂


@dataclass(frozen=True, eq=False)
class FlowLevels:
    """The levels of an integration, ascending in equal steps of u = log ρ.

    Attributes:
        ratio: (N + 1,) ρ = σ/α.
        t: (N + 1,) timesteps.
    """

    ratio: list[float]
    t: list[float]

    @classmethod
    def of(cls, schedule: NoiseSchedule, steps: int) -> FlowLevels:
        """From the schedule's lowest level to its highest with α > 0: where α = 0, ρ is infinite."""
        finite = schedule.alpha > 0
        table = schedule.sigma[finite] / schedule.alpha[finite]
        ratio = np.geomspace(table[0], table[-1], steps + 1)
        return cls(ratio.tolist(), np.interp(np.log(ratio), np.log(table), np.arange(len(table))).tolist())

    @property
    def step(self) -> float:
        """Of u = log ρ."""
        return math.log(self.ratio[-1] / self.ratio[0]) / (len(self.ratio) - 1)

    def alpha(self, index: int) -> float:
        """α² + σ² = 1 and σ/α = ρ."""
        return 1 / math.sqrt(1 + self.ratio[index] ** 2)

    def sigma(self, index: int) -> float:
        return self.ratio[index] * self.alpha(index)


@lru_cache(maxsize=256)
def likelihood_plan(schedule: NoiseSchedule, steps: int) -> Plan:
    """The plan of `steps` steps, 4·steps + 2 evaluations, on the registers above.

    A step predicts x with Adams and Bashforth's method of order 2 and corrects it with Adams and Moulton's of order 3;
    the first one, where the slope is nearly 0, is Heun's. The trapezoidal rule integrates the divergence.
    """
    levels = FlowLevels.of(schedule, steps)
    rows = [row for index in range(steps) for row in _step(levels, index)] + _last_rows(levels)
    index = [k + end for k in range(steps) for end in (0, 0, 0, 1)] + [steps, steps]  # of the level of each row
    return Plan(
        sampler="likelihood",
        t=np.array([levels.t[k] for k in index]),
        alpha=np.array([levels.alpha(k) for k in index]),
        sigma=np.array([levels.sigma(k) for k in index]),
        matrices=np.stack(rows),
        step=tuple(index),  # the last row of a step completes it
        log_variance_range=np.zeros(len(rows)),
        clips=False,
    )


def initial_registers(x0: Tensor, schedule: NoiseSchedule, steps: int, seed: int) -> Tensor:
    """(R, …) at the lowest level. x0: (…) float32 at α = 1."""
    x = float(FlowLevels.of(schedule, steps).alpha(0)) * x0
    registers = torch.zeros(REGISTERS, *x0.shape, dtype=x0.dtype, device=x0.device)
    registers[SEEN], registers[STATE], registers[SIGNS] = x, x, probe_signs(x0.shape, 1, seed)[0].to(x0)
    return registers


def log_density_of_registers(registers: Tensor, schedule: NoiseSchedule, steps: int) -> float:
    """log p of x̄ at ρ_min in nats, from the registers (R, …) after the last row."""
    levels, dimensions = FlowLevels.of(schedule, steps), registers[STATE].numel()
    # Sums by numpy, whose order of summation depends on no number of threads.
    state, signs, differences = (registers[k].double().cpu().numpy() for k in (STATE, SIGNS, DIFFERENCES))
    integral = float((signs * differences).sum())
    # log N(x; 0, I) as a density of x̄: d·log α is the logarithm of the Jacobian of x = αx̄.
    prior = -float(np.square(state).sum()) / 2 - dimensions / 2 * math.log(2 * math.pi)
    return prior + dimensions * math.log(levels.alpha(steps)) + integral


def bits(log_density: N, dimensions: int, width: float = BYTE_WIDTH) -> N:
    """Convert nats of a density to bits per dimension of cells of a width, by P(cell) = p·width."""
    return -log_density / (dimensions * math.log(2)) - math.log2(width)


def probe_signs(shape: Sequence[int], probes: int, seed: int) -> Tensor:
    """Random signs of one image: (probes, *shape) of ±1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (probes, *shape), generator=generator) * 2 - 1


def dequantization_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Uniform noise in [−½, ½) for one image."""
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)) - 0.5


Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Terms = Sequence[tuple[int, float]]  # (column, factor)


def _step(levels: FlowLevels, index: int) -> list[Matrix]:
    """The four rows of step `index`; each says what the network sees next."""
    h, sigma, end = levels.step, levels.sigma(index), levels.sigma(index + 1)
    predicted = [(STATE, 1.0), (SLOPE, 1.5 * h), (LAST, -0.5 * h)] if index else [(STATE, 1.0), (SLOPE, h)]
    # x' from the slopes at both ends, the second one at the predicted x, which the network has seen.
    last, here, there = (-h / 12, 8 * h / 12, 5 * h / 12) if index else (0.0, h / 2, h / 2)
    corrected = [(STATE, 1.0), (LAST, last), (SLOPE, here), (EPSILON, there * end), (SEEN, -there * end**2)]
    is_last = index == len(levels.ratio) - 2  # the differences at the highest level follow, and no slope
    seen = [*corrected, (SIGNS, DIFFERENCE * end)] if is_last else corrected
    return [
        _matrix({SLOPE: [(EPSILON, sigma), (SEEN, -(sigma**2))], SEEN: [(STATE, 1.0), (SIGNS, DIFFERENCE * sigma)]}),
        *_differences(levels, index, predicted),
        _matrix({STATE: corrected, SEEN: seen, LAST: [(SLOPE, 1.0)]}),
    ]


def _last_rows(levels: FlowLevels) -> list[Matrix]:
    """The differences at the highest level."""
    return _differences(levels, len(levels.ratio) - 1, [(STATE, 1.0)])


def _differences(levels: FlowLevels, index: int, then: Terms) -> list[Matrix]:
    """The two rows that add the central difference at a level to G. then: what the network sees after them."""
    offset = DIFFERENCE * levels.sigma(index)
    weight = levels.step * (0.5 if index in (0, len(levels.ratio) - 1) else 1.0)  # the ends count half
    factor = weight * levels.sigma(index) / (2 * offset)
    return [
        _matrix({DIFFERENCES: [(DIFFERENCES, 1.0), (EPSILON, factor)], SEEN: [(STATE, 1.0), (SIGNS, -offset)]}),
        _matrix({DIFFERENCES: [(DIFFERENCES, 1.0), (EPSILON, -factor)], SEEN: then}),
    ]


def _matrix(changed: Mapping[int, Terms]) -> Matrix:
    """A row's matrix (R, R + 3): registers that are not named stay as they are."""
    matrix = np.eye(REGISTERS, REGISTERS + 3)
    for register, terms in changed.items():
        matrix[register] = 0.0
        for column, factor in terms:
            matrix[register, column] += factor
    return matrix
