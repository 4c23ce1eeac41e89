"""A sampler is a table.

Every sampler offered here is linear in what is known at a step, so it compiles in float64
to a *plan*: one row (t, α, σ, M) per network evaluation, and the engine applies

    registers' = M · (registers, x̂_0, ε̂, z)

where registers are x and the tensors held beside it, x̂_0 and ε̂ the network's estimate at
(x, t) and z fresh unit noise. x̂_0 may have been clipped on the way; ε̂ is the network's own,
as in diffusers' DDIM, so both conventions are columns of one table. Where a network says
itself how much noise belongs there, `apply_learned_variance` scales z by it.

The samplers are listed in `model.diffusion.samplers`. This module knows nothing of networks,
batches or queues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from denoised.model.diffusion.grids import Levels
from denoised.model.diffusion.noise import Estimate, Float64


@dataclass(frozen=True)
class Row:
    """One evaluation. level: index of the noise level it is made at; step: how many steps are done
    after it (a two-stage solver's first row completes none); matrix: (R, R+3); log_variance_range: see `Plan`."""

    level: int
    step: int
    matrix: list[list[float]]
    log_variance_range: float = 0.0


@dataclass(frozen=True, eq=False)
class Plan:
    """A compiled sampler.

    t, alpha, sigma: (N,) float64, the level of each evaluation; matrices: (N, R, R+3) for R
    registers, columns (registers, x̂_0, ε̂, z); step: (N,) how many steps are done after it;
    log_variance_range: (N,) log of the factor on z that the network's variance output of 1 means, 0 where it has
    no say; start: what unit noise is multiplied with to become x_T.
    """

    sampler: str
    t: Float64
    alpha: Float64
    sigma: Float64
    matrices: Float64
    step: tuple[int, ...]
    log_variance_range: Float64
    start: float = 1.0

    @classmethod
    def of(cls, sampler: str, levels: Levels, rows: Sequence[Row]) -> Plan:
        """The table of a sampler's rows at these levels."""
        index = [row.level for row in rows]
        return cls(
            sampler=sampler,
            t=levels.t[index],
            alpha=levels.alpha[index],
            sigma=levels.sigma[index],
            matrices=np.asarray([row.matrix for row in rows], dtype=np.float64),
            step=tuple(row.step for row in rows),
            log_variance_range=np.asarray([row.log_variance_range for row in rows], dtype=np.float64),
            start=levels.start,
        )

    @property
    def evaluations(self) -> int:
        """Network calls per image."""
        return len(self.t)

    @property
    def steps(self) -> int:
        """Intervals of the noise schedule."""
        return self.step[-1]

    @cached_property
    def registers(self) -> int:
        """Tensors that live between evaluations, x first."""
        return int(self.matrices.shape[1])

    def draws(self, row: int) -> bool:
        """Whether that row takes fresh noise."""
        return self._draws[row]

    @cached_property
    def _draws(self) -> list[bool]:
        return [bool(drawn) for drawn in np.any(self.matrices[:, :, -1] != 0.0, axis=1)]

    def completes(self, row: int) -> bool:
        """Whether a step is done with that row."""
        return self.step[row] > (self.step[row - 1] if row else 0)


def advance(registers: Tensor, estimate: Estimate, z: Tensor, matrices: Tensor) -> Tensor:
    """Apply one row of each trajectory's plan: registers' = M · (registers, x̂_0, ε̂, z).

    registers: (B, R, C, H, W); estimate and z: (B, C, H, W); matrices: (B, R, R+3) float32.
    Sums run in a fixed order and by elementwise products alone, so that an image's bits do
    not depend on its neighbours.
    """
    count = registers.shape[1]
    known = [*(registers[:, j] for j in range(count)), estimate.x0, estimate.epsilon, z]
    weights = matrices[..., None, None, None]  # (B, R, R+3, 1, 1, 1)
    out = torch.empty_like(registers)
    for i in range(count):
        total = weights[:, i, 0] * known[0]
        for j in range(1, count + 3):
            total = total + weights[:, i, j] * known[j]
        out[:, i] = total
    return out


def apply_learned_variance(z: Tensor, variance_output: Tensor, log_variance_range: Tensor) -> Tensor:
    """z·exp(log_variance_range·variance_output), elementwise, for networks that predict their variance.

    z, variance_output: (B, C, H, W); log_variance_range: (B,) of the plans' rows.
    """
    return z * torch.exp(log_variance_range[:, None, None, None] * variance_output)
