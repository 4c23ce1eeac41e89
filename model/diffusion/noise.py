"""Noise schedules: α_t and σ_t of a model's training timesteps.

x_t = α_t·x_0 + σ_t·ε with α_t² + σ_t² = 1 (Ho et al. 2020, arXiv:2006.11239, eq. 4: α_t = √ᾱ_t). The
tables are float64: 1 − ᾱ from a float32 product is wrong in the fourth digit.

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

from denoised.model.errors import CheckpointError, abbreviate

Float64 = npt.NDArray[np.float64]

MIN_TRAINED_ALPHA = float(np.finfo(np.float32).tiny)  # plans are applied in float32
MIN_TRAINED_SIGMA = 2.0**-24  # less noise is rounded away next to an image


def _linear(timesteps: int, start: float, end: float) -> Float64:
    """Ho et al. 2020, section 4."""
    return np.linspace(start, end, timesteps, dtype=np.float64)


def _scaled_linear(timesteps: int, start: float, end: float) -> Float64:
    """√β_t is linear, as latent diffusion has it (Rombach et al. 2022, arXiv:2112.10752)."""
    return np.linspace(start**0.5, end**0.5, timesteps, dtype=np.float64) ** 2


def _cosine(timesteps: int, start: float, end: float) -> Float64:
    """Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17, β capped at 0.999; start and end have no effect."""
    u = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2  # f(t) of eq. 17; its f(0) cancels in the ratio below
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def _sigmoid(timesteps: int, start: float, end: float) -> Float64:
    """A logistic curve over −6 … 6 between the ends, diffusers' "sigmoid"."""
    ramp = 1 / (1 + np.exp(-np.linspace(-6, 6, timesteps, dtype=np.float64)))
    return ramp * (end - start) + start


# β_t (T,) of T, β_1 and β_T, by the names in scheduler_config.json.
BETAS: dict[str, Callable[[int, float, float], Float64]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
    "sigmoid": _sigmoid,
}


def beta_ends(timesteps: int) -> tuple[float, float]:
    """β_1 and β_T: 1e-4 and 0.02 of Ho et al. 2020 for T = 1000, scaled by 1000/T for any other T.

    The scaling keeps the total noise the same; β_T is capped at 0.999.
    """
    return 0.1 / timesteps, min(20 / timesteps, 0.999)


def named_betas(name: str, timesteps: int, start: float | None = None, end: float | None = None) -> Float64:
    """β_t (T,) of a schedule by diffusers' name for it.

    start, end: β_1 and β_T; those of `beta_ends` if left out.

    Raises:
        CheckpointError: for a name that is not in `BETAS`, or ends that give a β outside (0, 1).
    """
    if name not in BETAS:
        raise CheckpointError(f"beta_schedule = {abbreviate(name)} is not supported (supported: {', '.join(BETAS)})")
    default_start, default_end = beta_ends(timesteps)
    start, end = default_start if start is None else start, default_end if end is None else end
    betas = BETAS[name](timesteps, start, end)  # (T,)
    if not ((betas > 0) & (betas < 1)).all():
        raise CheckpointError(f"beta_start = {start} and beta_end = {end} lead outside 0 … 1")
    return betas


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise levels t = 0 … T − 1 of a model; the noise grows with t.

    Attributes:
        alpha: (T,) float64, α_t = √ᾱ_t.
        sigma: (T,) float64, σ_t = √(1 − ᾱ_t).
    """

    alpha: Float64
    sigma: Float64

    @classmethod
    def from_betas(cls, betas: Float64) -> NoiseSchedule:
        """The schedule of β_t (T,) in (0, 1).

        Raises:
            CheckpointError: if σ_t/α_t does not rise at every timestep in float64, α_T is 0 in float32, or σ_0 is
                nothing next to 1 in float32.
        """
        # ᾱ_t = ∏(1 − β_i) as a sum of logarithms: log1p and expm1 keep 1 − ᾱ exact near ᾱ = 1.
        log_alpha_bar = np.cumsum(np.log1p(-betas))
        schedule = cls(alpha=np.exp(log_alpha_bar / 2), sigma=np.sqrt(-np.expm1(log_alpha_bar)))
        if schedule.alpha[-1] < MIN_TRAINED_ALPHA:
            t = int(np.argmax(schedule.alpha < MIN_TRAINED_ALPHA))
            raise CheckpointError(f"the β leave no signal from timestep {t} on (√ᾱ is below {MIN_TRAINED_ALPHA:g})")
        if schedule.sigma[0] < MIN_TRAINED_SIGMA:
            raise CheckpointError(f"the β leave no noise at timestep 0 (√(1 − ᾱ) is below {MIN_TRAINED_SIGMA:g})")
        return schedule._with_rising_noise()

    @classmethod
    def from_name(
        cls, name: str, timesteps: int = 1000, start: float | None = None, end: float | None = None
    ) -> NoiseSchedule:
        """A schedule by diffusers' name for it; see `named_betas`.

        Raises:
            CheckpointError: as `named_betas` and `from_betas` do.
        """
        return cls.from_betas(named_betas(name, timesteps, start, end))

    def with_zero_terminal_snr(self) -> NoiseSchedule:
        """This schedule with √ᾱ shifted and scaled so that it ends in 0 (Lin et al. 2023, arXiv:2305.08891, alg. 1).

        Raises:
            CheckpointError: if the schedule has a single timestep, or if the noise of two of the result is equal.
        """
        if self.timesteps < 2:
            raise CheckpointError("rescale_betas_zero_snr = True needs at least 2 timesteps, not 1")
        first, last = self.alpha[0], self.alpha[-1]
        # √ᾱ − √ᾱ_T, scaled so that √ᾱ_1 stays.
        alpha = (self.alpha - last) * (first / (first - last))
        alpha[0] = first  # the algorithm keeps the first level; this removes the rounding error
        # σ² = (1 − α)(1 + α) loses no digits near α = 1, where 1 − α² would.
        return NoiseSchedule(alpha, np.sqrt((1 - alpha) * (1 + alpha)))._with_rising_noise()

    def _with_rising_noise(self) -> NoiseSchedule:
        """This schedule, checked: the samplers divide by differences of log(σ/α)."""
        with np.errstate(divide="ignore"):  # σ/α = ∞ at the end of a schedule with zero terminal SNR
            flat = np.flatnonzero(np.diff(self.sigma / self.alpha) <= 0)
        if len(flat):
            raise CheckpointError(f"timesteps {flat[0]} and {flat[0] + 1} have the same noise level in float64")
        return self

    def levels_at(self, t: Float64) -> tuple[Float64, Float64]:
        """α and σ (B,) at times t (B,) in 0 … T − 1, whole or not: log(σ/α) is interpolated linearly."""
        index = np.arange(self.timesteps)
        with np.errstate(divide="ignore"):  # σ/α = ∞ at the end of a schedule with zero terminal SNR
            ratio = np.exp(np.interp(t, index, np.log(self.sigma / self.alpha)))
        # α² + σ² = 1 with ρ = σ/α.
        alpha = np.where(ratio < np.inf, 1 / np.sqrt(1 + ratio**2), 0.0)
        return alpha, np.sqrt((1 - alpha) * (1 + alpha))

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether x_t at the last timestep is noise alone."""
        return bool(self.alpha[-1] == 0.0)

    @property
    def timesteps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alpha)


def level_tables(schedule: NoiseSchedule, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """α and σ as float32 tensors (T,), rounded once from float64."""
    return (
        torch.from_numpy(schedule.alpha).float().to(device),
        torch.from_numpy(schedule.sigma).float().to(device),
    )
