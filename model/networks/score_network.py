"""Networks that know a score under exploding variance, told and heard in the terms of all others.

NCSN++ (Song et al. 2021, arXiv:2011.13456, appendix C) has data in [0, 1], x_σ = x_0 + σ·ε with
σ from σ_min to σ_max in equal ratios, and outputs ∇log p_σ(x_σ) = −ε/σ. With y = 2·x − 1 in
[−1, 1] that is y_0 + ρ·ε, ρ = 2σ; divided by √(1 + ρ²) it is x_t = α_t·y_0 + σ_t·ε with
α_t² + σ_t² = 1, so every sampler and every other part of this package serves it unchanged.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.networks.config import UNetConfig
from denoised.model.networks.unet import UNet


class ScoreUNet(UNet):
    """A U-Net whose output is a score; called like one that predicts noise.

    lowest, highest: σ at timesteps 0 and timesteps − 1, equal ratios between.
    """

    def __init__(self, config: UNetConfig, lowest: float, highest: float, timesteps: int) -> None:
        super().__init__(config)
        self.start = math.log(lowest)
        self.slope = math.log(highest / lowest) / max(timesteps - 1, 1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W), x_t = α_t·y_0 + σ_t·ε; t: (B,) in timesteps. Returns ε̂, a tensor like x."""
        sigma = (self.start + self.slope * t.float()).exp()  # (B,), of the data in [0, 1]
        grown = (1 + (2 * sigma) ** 2).sqrt()
        exploded = (x * grown[:, None, None, None].to(x.dtype) + 1) / 2  # x_σ
        return -sigma[:, None, None, None].to(x.dtype) * super().forward(exploded, sigma, label)


def exploding_schedule(lowest: float, highest: float, timesteps: int) -> NoiseSchedule:
    """α_t and σ_t of σ from lowest to highest in equal ratios, for data scaled from [0, 1] to [−1, 1]."""
    ratio = 2 * np.geomspace(lowest, highest, timesteps)  # ρ = σ_t/α_t
    alpha = 1 / np.sqrt(1 + ratio**2)
    return NoiseSchedule(alpha=alpha, sigma=ratio * alpha)
