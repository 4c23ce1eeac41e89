"""Clipping of the denoised image x̂_0, image by image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from denoised.model.diffusion.predictions import Estimate, epsilon_from_x0


@dataclass(frozen=True)
class Clipping:
    """Keep x̂_0 in the range of the training data; pixel models are trained on [−1, 1].

    Attributes:
        limit: x̂_0 is clipped to ±limit; None leaves it as it is.
        quantile: None, or the quantile in 0 … 1 of dynamic thresholding (Saharia et al. 2022,
            arXiv:2205.11487, section 2.3): s, that quantile of an image's own |x̂_0| kept in 1 … limit,
            replaces the limit, and x̂_0 is divided by it.
    """

    limit: float | None = 1.0
    quantile: float | None = None

    def __call__(
        self, estimate: Estimate, x_t: Tensor, alpha: Tensor, sigma: Tensor, guided: Tensor | None
    ) -> Estimate:
        """Clip x̂_0 of a batch.

        x_t: (B, C, H, W) at levels alpha, sigma (B,); guided: (B,) bool, the images with guidance; None
        if there are none.

        Without guidance ε̂ stays the network's own, as in diffusers' DDIM. With guidance x̂_0
        overshoots early, and following the ε̂ of the overshot x̂_0 gives wrong images: there
        ε̂ = (x_t − α·x̂_0)/σ of the clipped x̂_0 (as in Saharia et al. 2022).
        """
        if self.limit is None:
            return estimate
        x0 = self._threshold(estimate.x0) if self.quantile is not None else estimate.x0.clamp(-self.limit, self.limit)
        if guided is None:
            return replace(estimate, x0=x0)
        # (B, C, H, W): x_t = α·x̂_0 + σ·ε̂ holds again for the clipped x̂_0.
        consistent = epsilon_from_x0(x_t, x0, alpha, sigma)
        return replace(estimate, x0=x0, epsilon=torch.where(guided[:, None, None, None], consistent, estimate.epsilon))

    def _threshold(self, x0: Tensor) -> Tensor:
        """Dynamic thresholding, by each image's own quantile: its neighbors in the batch change nothing."""
        assert self.limit is not None
        assert self.quantile is not None
        # s of section 2.3, (B,): at least 1, at most the limit.
        s = torch.quantile(x0.flatten(1).abs(), self.quantile, dim=1).clamp(1.0, max(self.limit, 1.0))
        s = s[:, None, None, None]  # (B, 1, 1, 1); s ≥ 1 leaves an image in [−1, 1] unchanged
        return torch.minimum(torch.maximum(x0, -s), s) / s
