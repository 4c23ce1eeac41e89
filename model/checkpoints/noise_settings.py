"""The settings in `scheduler_config.json`: noise schedule, prediction type, grid of timesteps, clipping.

`model.checkpoints.scheduler_file` fills in the defaults of the file's class; here the values are
checked and become objects of `model.diffusion`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from denoised.model.bounded_files import read_json
from denoised.model.checkpoints.scheduler_file import VARIANCE_EXPLODING, Keys, fill_defaults, matching_sampler
from denoised.model.diffusion.clipping import Clipping
from denoised.model.diffusion.grids import SPACINGS, VARIANCES, Grid, solver_timesteps
from denoised.model.diffusion.noise import Float64, NoiseSchedule, named_betas
from denoised.model.diffusion.predictions import PREDICTION_TYPES
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.diffusion.spacings import RatioSpacing
from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.networks.unet.score_network import variance_exploding_schedule
from denoised.model.networks.unet.unet_config import UNetConfig

MAX_TIMESTEPS = 100_000
MAX_NUMBER = 1e9  # of every other number
MIN_TIMESTEP_SCALING = 1e-3  # 0 makes the network's output count for nothing


@dataclass(frozen=True)
class NoiseSettings:
    """The content of a scheduler's file.

    Every property and method raises CheckpointError for an invalid value, naming the file, the key and the value.

    Attributes:
        path: the file.
        keys: its keys, with the defaults of its class.
    """

    path: Path
    keys: Keys

    @classmethod
    def read(cls, path: Path) -> NoiseSettings:
        """Read a file.

        Raises:
            CheckpointError: for a file, a class or a key that is not supported.
        """
        return cls(path, fill_defaults(path, read_json(path), SAMPLERS))

    @property
    def sampler(self) -> str | None:
        """The sampler that does the same as the file's class; None if no sampler here does."""
        own = matching_sampler(self.keys)
        return own if own in SAMPLERS else None

    @property
    def prediction_type(self) -> str:
        """One of `PREDICTION_TYPES`: what the network outputs."""
        return self._one_of("prediction_type", PREDICTION_TYPES)

    @property
    def variance_exploding(self) -> tuple[float, float, int] | None:
        """(σ_min, σ_max, T) of a score network under exploding variance; None for any other network."""
        if self.keys["_class_name"] != VARIANCE_EXPLODING:
            return None
        timesteps = self._timesteps
        lowest, highest = (self._number(key, 0.0) for key in ("sigma_min", "sigma_max"))
        if not 0 < lowest < highest:
            raise CheckpointError(f"{self.path}: sigma_min = {lowest} is not between 0 and sigma_max = {highest}")
        return lowest, highest, timesteps

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels of training, T timesteps."""
        if self.variance_exploding is not None:
            return variance_exploding_schedule(*self.variance_exploding)
        rescale = self._switch("rescale_betas_zero_snr", False)
        if rescale and self.prediction_type == "epsilon":
            raise CheckpointError(
                f"{self.path}: prediction_type = 'epsilon' with rescale_betas_zero_snr = True: "
                "at the last timestep the input is noise alone, and predicting it gives no image"
            )
        betas = self._betas()
        try:
            schedule = NoiseSchedule.from_betas(betas)
            return schedule.with_zero_terminal_snr() if rescale else schedule
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from error

    @property
    def clipping(self) -> Clipping:
        """How x̂_0 is clipped."""
        if self._switch("thresholding", False):
            ratio = self._number("dynamic_thresholding_ratio", 0.995)
            if ratio > 1:
                raise CheckpointError(f"{self.path}: dynamic_thresholding_ratio = {ratio} is outside 0 … 1")
            return Clipping(self._number("sample_max_value", 1.0, least=1), ratio)
        limit = self._number("clip_sample_range", 1.0)
        return Clipping(limit if self._switch("clip_sample", True) else None)

    def check(self, config: UNetConfig | TextUNetConfig) -> None:
        """Check every value, before weights are read, which takes a while. config: of the U-Net."""
        _ = self.prediction_type, self.clipping
        if not solver_timesteps(self.schedule, self.grid(config)):
            raise CheckpointError(
                f"{self.path}: lambda_min_clipped = {self._lambda_min():g} leaves no timestep: λ is log(α/σ)"
            )

    def grid(self, config: UNetConfig | TextUNetConfig) -> Grid:
        """How the timesteps are thinned out.

        config: of the U-Net, which needs 2·in_channels output channels for a learned variance.
        """
        variance_type = self._one_of("variance_type", VARIANCES)
        if variance_type.startswith("learned") and config.out_channels == config.in_channels:
            raise CheckpointError(
                f"{self.path}: variance_type = {variance_type!r} needs a U-Net of "
                f"out_channels = {2 * config.in_channels}, not {config.out_channels}"
            )
        return Grid(
            spacing=self._one_of("timestep_spacing", SPACINGS),
            steps_offset=int(self._number("steps_offset", 0, most=self._timesteps - 1)),
            set_alpha_to_one=self._switch("set_alpha_to_one", True),
            variance_type=variance_type,
            ratio_spacing=self._ratio_spacing(),
            lambda_min=self._lambda_min(),
            original_steps=int(self._number("original_inference_steps", 50, least=1, most=MAX_TIMESTEPS)),
            timestep_scaling=self._number("timestep_scaling", 10.0, least=MIN_TIMESTEP_SCALING),
        )

    def _ratio_spacing(self) -> RatioSpacing | None:
        """Which of diffusers' switches is on; it refuses more than one."""
        switches = [f"use_{name}_sigmas" for name in ("karras", "exponential", "beta")]
        on = [key for key in switches if self.keys.get(key) is not None and self._switch(key, False)]
        if len(on) > 1:
            raise CheckpointError(f"{self.path}: {on[0]} and {on[1]} are both true (allowed: one of them)")
        return RatioSpacing(on[0].split("_")[1]) if on else None

    @property
    def _timesteps(self) -> int:
        return int(self._number("num_train_timesteps", 1000, least=1, most=MAX_TIMESTEPS))

    def _betas(self) -> Float64:
        timesteps = self._timesteps
        if self.keys["trained_betas"] is not None:
            return self._trained_betas(timesteps)
        ends = [self._number("beta_start", 1e-4), self._number("beta_end", 0.02)]
        try:
            return named_betas(str(self.keys["beta_schedule"]), timesteps, *ends)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from error

    def _trained_betas(self, timesteps: int) -> Float64:
        betas = self.keys["trained_betas"]
        numbers = isinstance(betas, list) and all(type(beta) in (int, float) for beta in betas)
        if not numbers or len(betas) != timesteps or not all(0 < beta < 1 for beta in betas):
            raise CheckpointError(f"{self.path}: trained_betas is not a list of {timesteps} numbers between 0 and 1")
        return np.asarray(betas, dtype=np.float64)

    def _lambda_min(self) -> float:
        value = self.keys.get("lambda_min_clipped")
        if value is None:
            return -math.inf
        if type(value) not in (int, float) or not value <= MAX_NUMBER:
            raise CheckpointError(f"{self.path}: lambda_min_clipped = {abbreviate(value)} is not a number")
        return float(max(value, -MAX_NUMBER)) if value != -math.inf else -math.inf

    def _number(self, key: str, default: float, least: float = 0, most: float = MAX_NUMBER) -> float:
        """A finite number from `least` to `most`, whole if the default is; the default if the class has no such key."""
        value = self.keys.get(key, default)
        # `type`, not `isinstance`: True and False are ints in Python.
        kinds = (int,) if isinstance(default, int) else (int, float)
        if type(value) not in kinds or not least <= value < math.inf:
            kind = "whole number" if kinds == (int,) else "number"
            raise CheckpointError(f"{self.path}: {key} = {abbreviate(value)} is not a {kind} of at least {least}")
        if value > most:
            raise CheckpointError(f"{self.path}: {key} = {abbreviate(value)} is over {most:g}")
        return float(value)

    def _switch(self, key: str, default: bool) -> bool:
        value = self.keys.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key} = {abbreviate(value)} is neither true nor false")
        return value

    def _one_of(self, key: str, allowed: tuple[str, ...]) -> str:
        """The value of a key; the first of the allowed ones if the class has no such key."""
        value = self.keys.get(key, allowed[0])
        if value not in allowed:
            raise CheckpointError(
                f"{self.path}: {key} = {abbreviate(value)} is not supported (supported: {', '.join(allowed)})"
            )
        return str(value)
