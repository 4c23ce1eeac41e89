"""Clipping of x̂_0, image by image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from denoised.model.diffusion.noise import Estimate, epsilon_from_x0


@dataclass(frozen=True)
class Clipping:
    """Keep x̂_0 in ±limit; pixel models are trained on [−1, 1]. None: leave it.

    quantile: dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487, section 2.3): s, the quantile of an
    image's own |x̂_0|, kept in 1 … limit, takes the limit's place and x̂_0 is divided by it. None: off.
    """

    limit: float | None = 1.0
    quantile: float | None = None

    def __call__(self, estimate: Estimate, x: Tensor, alpha: Tensor, sigma: Tensor, guided: Tensor) -> Estimate:
        """Clip x̂_0 (B, …) of images x at levels α, σ (B,); guided: (B,) bool, where guidance was merged.

        Without guidance ε̂ stays the network's own, as in diffusers' DDIM. With guidance x̂_0
        overshoots early, and going on along the ε̂ that belongs to the overshot one ends in
        wrong pictures: there ε̂ = (x − α·x̂_0)/σ of the clipped x̂_0 (as in Saharia et al. 2022).
        """
        if self.limit is None:
            return estimate
        x0 = self._threshold(estimate.x0) if self.quantile is not None else estimate.x0.clamp(-self.limit, self.limit)
        consistent = epsilon_from_x0(x, x0, alpha, sigma)
        return replace(estimate, x0=x0, epsilon=torch.where(guided[:, None, None, None], consistent, estimate.epsilon))

    def _threshold(self, x0: Tensor) -> Tensor:
        """Each image by its own quantile: a neighbour changes nothing."""
        assert self.limit is not None
        assert self.quantile is not None
        s = torch.quantile(x0.flatten(1).abs(), self.quantile, dim=1).clamp(1.0, max(self.limit, 1.0))
        s = s[:, None, None, None]
        return torch.minimum(torch.maximum(x0, -s), s) / s
