"""A sampler is a table.

Every sampler offered here is linear in what is known at a step, so it compiles in float64
to a *plan*: one row (t, α, σ, M) for each network evaluation, and the engine applies

    registers' = M · (registers, x̂_0, ε̂, z)

where registers are x_t and the tensors kept from earlier rows, x̂_0 and ε̂ the network's estimate at
(x_t, t), and z fresh unit noise. x̂_0 may be clipped before; ε̂ stays the network's own, as in
diffusers' DDIM, so both conventions are columns of one table. Where the network predicts the
variance of the step, `apply_learned_variance` scales z by it.

`model.diffusion.samplers` lists the samplers. This module knows nothing of networks, batches or queues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from denoised.model.diffusion.grids import Levels
from denoised.model.diffusion.noise import Float64
from denoised.model.diffusion.predictions import Estimate


@dataclass(frozen=True)
class Row:
    """One evaluation of a plan.

    Attributes:
        level: index of the noise level at which the network is evaluated.
        step: the number of steps completed after this row; a two-stage solver's first row completes none.
        matrix: (R, R + 3) for R registers, columns (registers, x̂_0, ε̂, z).
        log_variance_range: see `Plan`.
    """

    level: int
    step: int
    matrix: list[list[float]]
    log_variance_range: float = 0.0


@dataclass(frozen=True, eq=False)
class Plan:
    """A compiled sampler: N rows, one for each evaluation, on R registers.

    Attributes:
        sampler: its name.
        t: (N,) float64, the time of each evaluation in training timesteps.
        alpha, sigma: (N,) float64, the noise level of each evaluation.
        matrices: (N, R, R + 3) float64, columns (registers, x̂_0, ε̂, z).
        step: (N,), the number of steps completed after each row.
        log_variance_range: (N,) float64, log of the factor on z at a variance output of 1; 0 where the variance
            is fixed.
        initial_scale: x_T is this times unit noise.
        clips: whether x̂_0 may be clipped; False where the network's own estimate is asked for.
    """

    sampler: str
    t: Float64
    alpha: Float64
    sigma: Float64
    matrices: Float64
    step: tuple[int, ...]
    log_variance_range: Float64
    initial_scale: float = 1.0
    clips: bool = True

    @classmethod
    def from_rows(cls, sampler: str, levels: Levels, rows: Sequence[Row]) -> Plan:
        """The plan of a sampler's rows at these levels."""
        index = [row.level for row in rows]  # (N,): several rows may share a level
        return cls(
            sampler=sampler,
            t=levels.t[index],
            alpha=levels.alpha[index],
            sigma=levels.sigma[index],
            matrices=np.asarray([row.matrix for row in rows], dtype=np.float64),
            step=tuple(row.step for row in rows),
            log_variance_range=np.asarray([row.log_variance_range for row in rows], dtype=np.float64),
            initial_scale=levels.initial_scale,
        )

    @classmethod
    def empty(cls, sampler: str) -> Plan:
        """The plan of no evaluation: x is returned as it is."""
        none = np.zeros(0)
        return cls(sampler, none, none, none, np.zeros((0, 1, 4)), (), none)

    @cached_property
    def evaluations(self) -> int:
        """N, the network evaluations for one image."""
        return len(self.t)

    @property
    def steps(self) -> int:
        """The number of intervals of the noise schedule; at most the number of evaluations."""
        return self.step[-1] if self.step else 0

    @cached_property
    def registers(self) -> int:
        """R, the tensors that live from one evaluation to the next; x_t is the first."""
        return int(self.matrices.shape[1])

    def draws_noise(self, row: int) -> bool:
        """Whether a row takes fresh noise z."""
        return self._draws_noise[row]

    @cached_property
    def is_deterministic(self) -> bool:
        """Whether no row takes fresh noise."""
        return not any(self._draws_noise)

    @cached_property
    def _draws_noise(self) -> list[bool]:
        # A row whose z column is 0 takes no draw; the other rows take consecutive draws of the generator.
        return [bool(drawn) for drawn in np.any(self.matrices[:, :, -1] != 0.0, axis=1)]

    def ratio(self, row: int) -> float:
        """ρ = σ/α of a row's evaluation; ∞ where α = 0."""
        return float(self.sigma[row] / self.alpha[row]) if self.alpha[row] > 0 else float("inf")

    def completes_step(self, row: int) -> bool:
        """Whether a row completes a step."""
        return self.step[row] > (self.step[row - 1] if row else 0)


def advance(registers: Tensor, estimate: Estimate, z: Tensor, matrices: Tensor) -> Tensor:
    """Apply one row of each trajectory's plan: registers' = M · (registers, x̂_0, ε̂, z).

    registers: (B, R, C, H, W); estimate and z: (B, C, H, W); matrices: (B, R, R + 3) float32.
    Returns (B, R, C, H, W).
    """
    # Elementwise products, summed in a fixed order, not a matmul: an image's bits must not depend on the batch.
    count = registers.shape[1]
    columns = [*(registers[:, j] for j in range(count)), estimate.x0, estimate.epsilon, z]
    weights = matrices[..., None, None, None]  # (B, R, R + 3, 1, 1, 1)
    out = weights[:, :, 0] * columns[0][:, None]  # (B, R, C, H, W)
    for j in range(1, count + 3):
        out += weights[:, :, j] * columns[j][:, None]
    return out


def apply_learned_variance(z: Tensor, variance_output: Tensor, log_variance_range: Tensor) -> Tensor:
    """z·exp(log_variance_range·variance_output), elementwise, for networks that predict their variance.

    z, variance_output: (B, C, H, W); log_variance_range: (B,) of the plans' rows.
    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15, as a factor on the standard deviation.
    """
    # (B, 1, 1, 1) times (B, C, H, W)
    return z * torch.exp(log_variance_range[:, None, None, None] * variance_output)
