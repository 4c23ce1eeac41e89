"""Noise levels, and what a prediction at a noise level means.

x_t = α_t·x_0 + σ_t·ε with α_t² + σ_t² = 1 (Ho et al. 2020, eq. 4: α_t = √ᾱ_t). The tables
are float64: 1 − ᾱ from a float32 product is wrong in the fourth digit.

This module knows nothing of networks, samplers or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoised.model.errors import CheckpointError

Float64 = npt.NDArray[np.float64]


def _linear(timesteps: int, start: float, end: float) -> Float64:
    return np.linspace(start, end, timesteps, dtype=np.float64)


def _scaled_linear(timesteps: int, start: float, end: float) -> Float64:
    return np.linspace(start**0.5, end**0.5, timesteps, dtype=np.float64) ** 2


def _cosine(timesteps: int, start: float, end: float) -> Float64:
    """Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17, β capped at 0.999."""
    u = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def _sigmoid(timesteps: int, start: float, end: float) -> Float64:
    ramp = 1 / (1 + np.exp(-np.linspace(-6, 6, timesteps, dtype=np.float64)))
    return ramp * (end - start) + start


# By the names that scheduler_config.json uses.
BETAS: dict[str, Callable[[int, float, float], Float64]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
    "sigmoid": _sigmoid,
}


def beta_ends(timesteps: int) -> tuple[float, float]:
    """β_1 and β_T: 1e-4 and 0.02 of Ho et al. 2020 for T = 1000, and as much noise in all for any other T."""
    return 0.1 / timesteps, min(20 / timesteps, 0.999)


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels t = 0 … T−1 of a model, ascending in noise.

    alpha, sigma: (T,) float64, α_t = √ᾱ_t and σ_t = √(1 − ᾱ_t).
    """

    alpha: Float64
    sigma: Float64

    @classmethod
    def from_betas(cls, betas: Float64) -> NoiseSchedule:
        """β_t (T,) in (0, 1) → tables. log and expm1 keep 1 − ᾱ exact near ᾱ = 1."""
        log_alpha_bar = np.cumsum(np.log1p(-betas))
        return cls(alpha=np.exp(log_alpha_bar / 2), sigma=np.sqrt(-np.expm1(log_alpha_bar)))

    @classmethod
    def named(
        cls, name: str, timesteps: int = 1000, start: float | None = None, end: float | None = None
    ) -> NoiseSchedule:
        """A schedule by diffusers' name for it; its ends are those of `beta_ends` if left out.

        Raises:
            CheckpointError: for a name that is not in `BETAS`, or ends that give no β in (0, 1).
        """
        if name not in BETAS:
            raise CheckpointError(f"beta_schedule = {name!r} is not supported (supported: {', '.join(BETAS)})")
        lowest, highest = beta_ends(timesteps)
        start, end = lowest if start is None else start, highest if end is None else end
        betas = BETAS[name](timesteps, start, end)
        if not ((betas > 0) & (betas < 1)).all():
            raise CheckpointError(f"beta_start = {start} and beta_end = {end} lead outside 0 … 1")
        return cls.from_betas(betas)

    def ending_in_noise(self) -> NoiseSchedule:
        """Zero terminal SNR: √ᾱ shifted and scaled to end in 0 (Lin et al. 2023, arXiv:2305.08891, algorithm 1)."""
        first, last = self.alpha[0], self.alpha[-1]
        alpha = (self.alpha - last) * (first / (first - last))
        alpha[0] = first
        return NoiseSchedule(alpha, np.sqrt((1 - alpha) * (1 + alpha)))

    def level(self, t: Float64) -> tuple[Float64, Float64]:
        """α and σ at times between the timesteps too: log(σ/α) is linear from one to the next.

        t: in units of timesteps, 0 … T − 1.
        """
        index = np.arange(self.timesteps)
        with np.errstate(divide="ignore"):
            ratio = np.exp(np.interp(t, index, np.log(self.sigma / self.alpha)))
        alpha = np.where(ratio < np.inf, 1 / np.sqrt(1 + ratio**2), 0.0)
        return alpha, np.sqrt((1 - alpha) * (1 + alpha))

    @property
    def ends_in_noise(self) -> bool:
        """Whether nothing of the picture is left at the last timestep."""
        return bool(self.alpha[-1] == 0.0)

    @property
    def timesteps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alpha)


def add_noise(x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_t = α·x_0 + σ·ε. α, σ: (B,), one level an image."""
    return _per_image(alpha, x0) * x0 + _per_image(sigma, x0) * epsilon


def x0_from_epsilon(x: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x̂_0 = (x_t − σ·ε̂)/α (Ho et al. 2020, eq. 15)."""
    return (x - _per_image(sigma, x) * epsilon) / _per_image(alpha, x)


def epsilon_from_x0(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """ε̂ = (x_t − α·x̂_0)/σ."""
    return (x - _per_image(alpha, x) * x0) / _per_image(sigma, x)


def v_target(x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = α·ε − σ·x_0 (Salimans & Ho 2022, arXiv:2202.00512, appendix D)."""
    return _per_image(alpha, x0) * epsilon - _per_image(sigma, x0) * x0


def x0_from_v(x: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x̂_0 = α·x_t − σ·v̂; finite also where α = 0."""
    return _per_image(alpha, x) * x - _per_image(sigma, x) * v


def epsilon_from_v(x: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """ε̂ = α·v̂ + σ·x_t."""
    return _per_image(alpha, x) * v + _per_image(sigma, x) * x


def score_from_epsilon(epsilon: Tensor, sigma: Tensor) -> Tensor:
    """∇ log p_t(x_t) = −ε̂/σ (Song et al. 2021, arXiv:2011.13456)."""
    return -epsilon / _per_image(sigma, epsilon)


def training_target(x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """What a network of that head is to output at x_t = α·x_0 + σ·ε."""
    if prediction_type == "epsilon":
        return epsilon
    if prediction_type == "sample":
        return x0
    return v_target(x0, epsilon, alpha, sigma)


@dataclass(frozen=True)
class Estimate:
    """What a network says of noisy images: x̂_0 and ε̂, both (B, C, H, W).

    variance_output: the same shape, where the network predicts the variance of the reverse step too.
    """

    x0: Tensor
    epsilon: Tensor
    variance_output: Tensor | None = None

    def of(self, index: Tensor) -> Estimate:
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

    def with_some(self, index: Tensor, others: Estimate) -> Estimate:
        """Replace x̂_0 and ε̂ of some images; `variance_output` stays."""
        x0, epsilon = self.x0.index_copy(0, index, others.x0), self.epsilon.index_copy(0, index, others.epsilon)
        return Estimate(x0, epsilon, self.variance_output)


def estimate(output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Estimate:
    """Read a network's output in its own parameterisation; no form cancels where α or σ is small."""
    if prediction_type == "epsilon":
        return Estimate(x0_from_epsilon(x, output, alpha, sigma), output)
    if prediction_type == "sample":
        return Estimate(output, epsilon_from_x0(x, output, alpha, sigma))
    return Estimate(x0_from_v(x, output, alpha, sigma), epsilon_from_v(x, output, alpha, sigma))


def _per_image(level: Tensor, like: Tensor) -> Tensor:
    return level.to(like.dtype).view(-1, *(1,) * (like.dim() - 1))


def tables(schedule: NoiseSchedule, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """α and σ as float32 tensors (T,), rounded once from float64."""
    return (
        torch.from_numpy(schedule.alpha).float().to(device),
        torch.from_numpy(schedule.sigma).float().to(device),
    )
