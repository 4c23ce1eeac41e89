"""Read what a network predicts at a noise level as x̂_0 and ε̂, and convert between parameterizations.

x_t = α_t·x_0 + σ_t·ε with α_t² + σ_t² = 1. Below, α and σ are (B,), one level for each image, and every
tensor of images is (B, C, H, W).

This module knows nothing of networks, samplers or files.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# What a network outputs: ε, v or x_0, by the names in scheduler_config.json.
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def add_noise(x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_t = α·x_0 + σ·ε (Ho et al. 2020, arXiv:2006.11239, eq. 4)."""
    return _per_image(alpha, x0) * x0 + _per_image(sigma, x0) * epsilon


def x0_from_epsilon(x_t: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x̂_0 = (x_t − σ·ε̂)/α (Ho et al. 2020, eq. 15)."""
    return (x_t - _per_image(sigma, x_t) * epsilon) / _per_image(alpha, x_t)


def epsilon_from_x0(x_t: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """ε̂ = (x_t − α·x̂_0)/σ."""
    return (x_t - _per_image(alpha, x_t) * x0) / _per_image(sigma, x_t)


def v_target(x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = α·ε − σ·x_0 (Salimans & Ho 2022, arXiv:2202.00512, appendix D)."""
    return _per_image(alpha, x0) * epsilon - _per_image(sigma, x0) * x0


def x0_from_v(x_t: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x̂_0 = α·x_t − σ·v̂; finite also where α = 0."""
    # α·x_t − σ·v = (α² + σ²)·x_0, with v = α·ε − σ·x_0.
    return _per_image(alpha, x_t) * x_t - _per_image(sigma, x_t) * v


def epsilon_from_v(x_t: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """ε̂ = α·v̂ + σ·x_t."""
    # α·v + σ·x_t = (α² + σ²)·ε.
    return _per_image(alpha, x_t) * v + _per_image(sigma, x_t) * x_t


def score_from_epsilon(epsilon: Tensor, sigma: Tensor) -> Tensor:
    """∇ log p_t(x_t) = −ε̂/σ (Song et al. 2021, arXiv:2011.13456)."""
    return -epsilon / _per_image(sigma, epsilon)


def training_target(x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """The output that a network of `prediction_type` is trained to give at x_t = α·x_0 + σ·ε."""
    if prediction_type == "epsilon":
        return epsilon
    if prediction_type == "sample":
        return x0
    return v_target(x0, epsilon, alpha, sigma)


@dataclass(frozen=True)
class Estimate:
    """A network's estimate for a batch of noisy images.

    Attributes:
        x0: (B, C, H, W), the denoised images x̂_0.
        epsilon: (B, C, H, W), the noise prediction ε̂.
        variance_output: (B, C, H, W), what the network predicts of the reverse step's variance; None if it does not.
    """

    x0: Tensor
    epsilon: Tensor
    variance_output: Tensor | None = None

    def select(self, index: Tensor) -> Estimate:
        """The estimates of some images, by index."""
        variance = None if self.variance_output is None else self.variance_output[index]
        return Estimate(self.x0[index], self.epsilon[index], variance)

    def split(self, count: int) -> tuple[Estimate, Estimate]:
        """The estimates of the first `count` images, and those of the others."""
        variance = self.variance_output
        first, others = (None, None) if variance is None else (variance[:count], variance[count:])
        return (
            Estimate(self.x0[:count], self.epsilon[:count], first),
            Estimate(self.x0[count:], self.epsilon[count:], others),
        )

    def replace(self, index: Tensor, others: Estimate) -> Estimate:
        """This estimate with x̂_0 and ε̂ of some images replaced; `variance_output` stays."""
        # index_copy gives new tensors: the estimate itself never changes.
        x0, epsilon = self.x0.index_copy(0, index, others.x0), self.epsilon.index_copy(0, index, others.epsilon)
        return Estimate(x0, epsilon, self.variance_output)


def estimate_from_output(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Estimate:
    """Read a network's output at x_t as x̂_0 and ε̂.

    Each is computed from the output directly, never one from the other, so no digits cancel where α or σ is small.
    """
    # output: (B, C, H, W), without the channels of a learned variance.
    if prediction_type == "epsilon":  # x̂_0 divides by α: undefined at α = 0
        return Estimate(x0_from_epsilon(x_t, output, alpha, sigma), output)
    if prediction_type == "sample":  # ε̂ divides by σ
        return Estimate(output, epsilon_from_x0(x_t, output, alpha, sigma))
    return Estimate(x0_from_v(x_t, output, alpha, sigma), epsilon_from_v(x_t, output, alpha, sigma))


def _per_image(level: Tensor, images: Tensor) -> Tensor:
    """(B,) → (B, 1, 1, 1), in the type of the images."""
    return level.to(images.dtype).view(-1, *(1,) * (images.dim() - 1))
