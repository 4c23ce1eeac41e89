"""The teacher's trajectories: its states at some noise levels, and the picture that each leads to.

A deterministic sampler, with its guidance, maps x at any of its levels to x_0. The student learns this map at the
levels that it will be evaluated at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.diffusion.noise import Float64
from denoised.model.diffusion.plans import Plan
from denoised.model.errors import TrainingError
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.sampling import sample


@dataclass(frozen=True)
class JumpLevels:
    """The L noise levels that the student jumps from, the noisiest first.

    Attributes:
        t: (L,) float64, in training timesteps.
        alpha, sigma: (L,) float64.
    """

    t: Float64
    alpha: Float64
    sigma: Float64

    def __len__(self) -> int:
        return len(self.t)

    @property
    def ratios(self) -> list[float]:
        """ρ = σ/α."""
        return [float(ratio) for ratio in self.sigma / self.alpha]


@dataclass(frozen=True)
class Trajectories:
    """N of the teacher's trajectories at L noise levels.

    Attributes:
        labels: (N,) int64 class indices; 0 for a model without classes.
        states: (N, L, C, H, W) float16, x_t = α·x_0 + σ·ε at each level, the noisiest first.
        ends: (N, C, H, W) float16, the picture x_0 that each trajectory ends in.
    """

    labels: Tensor
    states: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    @classmethod
    def joined(cls, parts: Sequence[Trajectories]) -> Trajectories:
        """The trajectories of all parts, in their order."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("labels", "states", "ends")))


class Teacher:
    """A model that draws as its card says.

    rows: the rows of its plan that the student's levels belong to.

    Raises:
        TrainingError: if its sampler draws noise, or its plan has no second level.
    """

    def __init__(self, model: PixelModel, middle: float) -> None:
        """middle: the noise level ρ of the second jump; that of the plan which is nearest in log ρ is taken."""
        self.model = model
        default = model.card.default
        sigmas = tuple(default.sigmas) if default.sigmas is not None else None
        bounds = (None, None) if sigmas is not None else (default.sigma_min, default.sigma_max)
        self._choice = LevelChoice(None if sigmas is not None else default.spacing, None, *bounds, sigmas)
        self.plan = model.plan(default.sampler, default.steps, 0.0, self._choice)
        if not self.plan.is_deterministic:
            raise TrainingError(f"the card's sampler is {default.sampler}, which draws noise: a trajectory has none")
        self.rows = (0, _nearest_row(self.plan, middle))

    @property
    def levels(self) -> JumpLevels:
        """The noise levels that the student jumps from."""
        rows = list(self.rows)
        return JumpLevels(self.plan.t[rows], self.plan.alpha[rows], self.plan.sigma[rows])

    def draw(self, labels: Sequence[int | None], seed: int) -> Trajectories:
        """One trajectory per label, that of image k from seed + k."""
        states: dict[int, Tensor] = {}

        def observe(row: int, x: Tensor) -> None:
            if row in self.rows:
                states[row] = x.half().cpu()

        default = self.model.card.default
        ends = sample(
            self.model,
            labels,
            seed=seed,
            sampler=default.sampler,
            steps=default.steps,
            levels=self._choice,
            guidance_scale=default.guidance_scale,
            guidance_rescale=default.guidance_rescale,
            guidance_interval=default.guidance_interval,
            observe=observe,
        )
        kept = torch.stack([states[row] for row in self.rows], dim=1)
        return Trajectories(torch.tensor([label or 0 for label in labels]), kept, ends.half().cpu())


def _nearest_row(plan: Plan, ratio: float) -> int:
    """The row after the first, and at the start of a step, whose level is nearest to ρ."""
    starts = [row for row in range(1, plan.evaluations) if plan.completes_step(row - 1)]
    if not starts:
        raise TrainingError("the card's plan has one step: a teacher needs levels between the first and the picture")
    return min(starts, key=lambda row: abs(math.log(plan.ratio(row)) - math.log(ratio)))


def drawn_labels(start: int, count: int, classes: int) -> list[int | None]:
    """The labels of trajectories start … start + count − 1: every class in turn."""
    return [k % classes if classes else None for k in np.arange(start, start + count).tolist()]
