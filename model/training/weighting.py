"""How much each noise level counts in the loss.

Min-SNR-γ (Hang et al. 2023, arXiv:2303.09556, eq. 8): measured on x̂_0, the weight is min(SNR, γ) with
SNR = α²/σ². The squared error of an ε or v prediction differs from that of x̂_0 only by a factor of the
noise level (ε: SNR, v: SNR + 1), so its weight is divided by that factor.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from denoised.model.diffusion.noise import NoiseSchedule


def loss_weights(schedule: NoiseSchedule, prediction_type: str, gamma: float | None) -> Tensor:
    """The weight w_t of the squared error at each timestep: (T,) float32; 1 everywhere if gamma is None.

    min(SNR, γ)/SNR for ε, min(SNR, γ)/(SNR + 1) for v and min(SNR, γ) for x_0, written so that no level divides by
    zero: the weights at α = 0 (SNR 0) and at σ = 0 (SNR ∞) are finite.
    """
    if gamma is None:
        return torch.ones(schedule.timesteps)
    alpha2, sigma2 = schedule.alpha**2, schedule.sigma**2
    if prediction_type == "epsilon":
        # γ/SNR = γσ²/α² is at most 1 only where SNR ≥ γ; elsewhere, α = 0 included, the maximum makes it 1.
        weights = gamma * sigma2 / np.maximum(alpha2, gamma * sigma2)
    elif prediction_type == "v_prediction":
        # 1/(SNR + 1) = σ², and σ²·min(SNR, γ) = min(α², γσ²).
        weights = np.minimum(alpha2, gamma * sigma2)
    else:
        # min(SNR, γ) = α²/max(σ², α²/γ), finite at σ = 0.
        weights = alpha2 / np.maximum(sigma2, alpha2 / gamma)
    return torch.from_numpy(weights).float()
