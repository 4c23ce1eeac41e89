"""Score networks under exploding variance, in the terms of the variance-preserving process.

NCSN++ (Song et al. 2021, arXiv:2011.13456, appendix C) has data in [0, 1], x_σ = x_0 + σ·ε with σ from
σ_min to σ_max in a geometric sequence, and outputs the score ∇log p_σ(x_σ) = −ε/σ. With y = 2·x − 1 in
[−1, 1] that is y_0 + ρ·ε, ρ = 2σ; divided by √(1 + ρ²) it is x_t = α_t·y_0 + σ_t·ε with
α_t² + σ_t² = 1, so every sampler and every other part of this package serves it unchanged.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig


class ScoreUNet(UNet):
    """A U-Net that outputs a score, called like one that predicts noise: `forward` returns ε̂.

    sigma_min, sigma_max: σ at timesteps 0 and `timesteps` − 1, for data in [0, 1].
    """

    def __init__(self, config: UNetConfig, sigma_min: float, sigma_max: float, timesteps: int) -> None:
        super().__init__(config)
        self.start = math.log(sigma_min)
        self.slope = math.log(sigma_max / sigma_min) / max(timesteps - 1, 1)

    def prepare(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_σ and σ (B,), of data in [0, 1]; x is x_t = α_t·y_0 + σ_t·ε, t (B,) in timesteps."""
        sigma = (self.start + self.slope * t.float()).exp()
        scale = (1 + (2 * sigma) ** 2).sqrt()  # 1/α_t = √(1 + ρ²)
        x_sigma = (x * scale[:, None, None, None].to(x.dtype) + 1) / 2  # y_0 + ρ·ε, moved from [−1, 1] to [0, 1]
        return super().prepare(x_sigma, sigma)

    def finish(self, h: Tensor, level: Tensor) -> Tensor:
        """The noise ε̂ = −σ·∇log p_σ (B, C, H, W)."""
        return -level[:, None, None, None].to(h.dtype) * super().finish(h, level)


def variance_exploding_schedule(sigma_min: float, sigma_max: float, timesteps: int) -> NoiseSchedule:
    """α_t and σ_t of a geometric sequence of σ, for data scaled from [0, 1] to [−1, 1]."""
    ratio = 2 * np.geomspace(sigma_min, sigma_max, timesteps)  # ρ = σ_t/α_t
    alpha = 1 / np.sqrt(1 + ratio**2)
    return NoiseSchedule(alpha=alpha, sigma=ratio * alpha)
