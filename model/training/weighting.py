"""How much each noise level counts in the loss.

Min-SNR-γ (Hang et al. 2023, arXiv:2303.09556): in terms of x̂_0 the weight is min(SNR, γ) with
SNR = α²/σ². Each head's loss differs from that of x̂_0 by a factor of the level alone, so its
weight does too.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from denoised.model.diffusion.noise import NoiseSchedule


def loss_weights(schedule: NoiseSchedule, prediction_type: str, gamma: float | None) -> Tensor:
    """w_t of the squared error of a head's output at each level: (T,) float32; 1 everywhere without γ.

    Equals min(SNR, γ)/SNR for ε, min(SNR, γ)/(SNR + 1) for v and min(SNR, γ) for x_0, written so that
    no level divides by zero: α = 0 (SNR 0) and σ = 0 (SNR ∞) have finite weights.
    """
    if gamma is None:
        return torch.ones(schedule.timesteps)
    alpha2, sigma2 = schedule.alpha**2, schedule.sigma**2
    if prediction_type == "epsilon":
        # Where SNR ≤ γ, so also at α = 0, the quotient is not asked for.
        weights = gamma * sigma2 / np.maximum(alpha2, gamma * sigma2)
    elif prediction_type == "v_prediction":
        weights = np.minimum(alpha2, gamma * sigma2)  # 1/(SNR + 1) = σ²
    else:
        weights = alpha2 / np.maximum(sigma2, alpha2 / gamma)
    return torch.from_numpy(weights).float()
