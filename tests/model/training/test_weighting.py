"""min-SNR-γ at every level, by the formula of each prediction type, including α = 0 and σ = 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from denoised.model.diffusion.noise import BETAS, NoiseSchedule
from denoised.model.diffusion.predictions import PREDICTION_TYPES
from denoised.model.training.weighting import loss_weights

# α² and σ² of SNR 0, 1/4, 1, 4, 9, ∞, and for γ = 5 the weights of Hang et al. 2023, section 3.4, by hand.
ALPHA2 = np.array([0.0, 0.2, 0.5, 0.8, 0.9, 1.0])
SCHEDULE = NoiseSchedule(alpha=np.sqrt(ALPHA2), sigma=np.sqrt(1 - ALPHA2))
BY_HAND = {
    "epsilon": [1.0, 1.0, 1.0, 1.0, 5 / 9, 0.0],
    "v_prediction": [0.0, 0.2, 0.5, 0.8, 0.5, 0.0],
    "sample": [0.0, 0.25, 1.0, 4.0, 5.0, 5.0],
}


@pytest.mark.parametrize("head", PREDICTION_TYPES)
def test_weights_equal_hand_computed_values_including_zero_signal_and_zero_noise(head: str) -> None:
    """Dividing by a terminal SNR of zero gives NaN elsewhere (Min-SNR-Diffusion-Training issue 2)."""
    weights = loss_weights(SCHEDULE, head, 5.0)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(BY_HAND[head], rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("head", PREDICTION_TYPES)
@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("gamma", [0.5, 5.0, 20.0])
def test_weights_equal_the_papers_quotients_where_those_are_defined(head: str, name: str, gamma: float) -> None:
    schedule = NoiseSchedule.from_name(name)
    snr = schedule.alpha**2 / schedule.sigma**2
    quotient = {
        "epsilon": np.minimum(snr, gamma) / snr,
        "v_prediction": np.minimum(snr, gamma) / (snr + 1),
        "sample": np.minimum(snr, gamma),
    }[head]
    np.testing.assert_allclose(loss_weights(schedule, head, gamma).numpy(), quotient, rtol=1e-6)


@pytest.mark.parametrize("name", BETAS)
def test_all_prediction_types_weight_the_clean_image_alike(name: str) -> None:
    """‖x_0 − x̂_0‖² = σ²/α²·‖ε − ε̂‖² = σ²·‖v − v̂‖²: w_x·σ²/α² = w_ε and w_x·σ² = w_v."""
    schedule = NoiseSchedule.from_name(name)
    x0, epsilon, v = (
        loss_weights(schedule, head, 5.0).double().numpy() for head in ("sample", "epsilon", "v_prediction")
    )
    np.testing.assert_allclose(epsilon, x0 * schedule.sigma**2 / schedule.alpha**2, rtol=1e-6)
    np.testing.assert_allclose(v, x0 * schedule.sigma**2, rtol=1e-6)


@pytest.mark.parametrize("head", PREDICTION_TYPES)
def test_without_gamma_every_level_has_weight_one(head: str) -> None:
    assert loss_weights(SCHEDULE, head, None).tolist() == [1.0] * 6
