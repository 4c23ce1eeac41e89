"""A served model is three verbs: condition, denoise, decode.

`condition` runs once per image of a job, `denoise` many times on a batch of anybody's
images, `decode` once per finished image and off the engine's thread. The caller knows
neither what a condition holds nor what shape the network works in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.card import ModelCard
from model.grids import Grid
from model.noise import Estimate, NoiseSchedule, epsilon_from_x0, estimate
from model.plans import Plan
from model.samplers import compile_plan
from model.unet import UNet


@dataclass(frozen=True)
class Clipping:
    """Keep x̂_0 in ±limit; pixel models are trained on [−1, 1]. None: leave it."""

    limit: float | None = 1.0

    def __call__(self, estimate: Estimate, x: Tensor, alpha: Tensor, sigma: Tensor, guided: Tensor) -> Estimate:
        """Clip x̂_0 (B, …) of images x at levels α, σ (B,); guided: (B,) bool, where guidance was merged.

        Without guidance ε̂ stays the network's own, as in diffusers' DDIM. With guidance x̂_0
        overshoots early, and going on along the ε̂ that belongs to the overshot one ends in
        wrong pictures: there ε̂ = (x − α·x̂_0)/σ of the clipped x̂_0 (as in Saharia et al. 2022,
        arXiv:2205.11487, section 2.3).
        """
        if self.limit is None:
            return estimate
        x0 = estimate.x0.clamp(-self.limit, self.limit)
        consistent = epsilon_from_x0(x, x0, alpha, sigma)
        return Estimate(x0, torch.where(guided[:, None, None, None], consistent, estimate.epsilon))


class PixelModel:
    """A U-Net on pixels, conditioned on a class index (or not at all)."""

    def __init__(
        self,
        unet: UNet,
        schedule: NoiseSchedule,
        prediction_type: str,
        grid: Grid,
        clipping: Clipping,
        card: ModelCard,
    ) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.grid = grid
        self.clipping = clipping
        self.card = card
        self.device = next(unet.parameters()).device
        self._compile = lru_cache(maxsize=256)(self._compile_plan)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the tensor that is denoised."""
        return (self.card.channels, self.card.height, self.card.width)

    def plan(self, sampler: str, steps: int, eta: float) -> Plan:
        """The plan for a request on this model's noise schedule; made once, then remembered.

        Raises:
            PlanError: for what the sampler does not offer.
        """
        return self._compile(sampler, steps, eta)

    def condition(self, label: int | None) -> Tensor:
        """What `denoise` needs to know of one image: () int64, the class, K for "no label"."""
        return torch.tensor(len(self.card.labels) if label is None else label)

    @torch.inference_mode()
    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditions: Tensor) -> Estimate:
        """x: (B, C, H, W) at levels t, α, σ (B,); conditions: (B,) of `condition`. Row by row independent."""
        labels = conditions.to(self.device) if self.unet.class_embedding is not None else None
        output = self.unet(x, t, labels)
        return estimate(output, x, alpha, sigma, self.prediction_type)

    def decode(self, x0: Tensor) -> npt.NDArray[np.uint8]:
        """x_0 (C, H, W) in [−1, 1] → (H, W, C) bytes, (x + 1)·127.5 rounded half to even, as diffusers does."""
        pixels = ((x0.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(1, 2, 0).numpy()

    def _compile_plan(self, sampler: str, steps: int, eta: float) -> Plan:
        return compile_plan(sampler, self.schedule, steps, self.grid, eta)


def guide(conditional: Estimate, unconditional: Estimate, scale: Tensor) -> Estimate:
    """Classifier-free guidance: uncond + s·(cond − uncond) (Ho & Salimans 2022, arXiv:2207.12598).

    scale: (B,), 1 leaves the conditional estimate. Linear, so x̂_0 and ε̂ are merged alike.
    """
    s = scale.view(-1, 1, 1, 1)
    return Estimate(
        x0=unconditional.x0 + s * (conditional.x0 - unconditional.x0),
        epsilon=unconditional.epsilon + s * (conditional.epsilon - unconditional.epsilon),
    )
