"""Everything that determines the numbers of a training run of a class-conditional model.

The options of `denoised train` are derived from these declarations (`model.training.settings`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from denoised.model.checkpoints.unet_config_file import MAX_SIDE
from denoised.model.diffusion.noise import BETAS, NoiseSchedule
from denoised.model.diffusion.predictions import PREDICTION_TYPES
from denoised.model.errors import TrainingError
from denoised.model.training.datasets.image_folder import UNREADABLE
from denoised.model.training.learning_config import MAX_SNAPSHOTS, SNAPSHOTS, LearningConfig
from denoised.model.training.presets import FROM_PRESET, PRESETS
from denoised.model.training.settings import setting, unknown, validate_settings


@dataclass(frozen=True)
class TrainingConfig(LearningConfig):
    """Everything that determines the numbers of a run; stored in its folder as `config.json`."""

    preset: str = setting("small", "network preset, with the defaults that suit it", choices=PRESETS)
    prediction_type: str = setting(
        "v_prediction", "what the network predicts", flag="prediction", choices=PREDICTION_TYPES
    )
    beta_schedule: str = setting("squaredcos_cap_v2", "noise schedule", flag="schedule", choices=BETAS)
    # The last timestep is pure noise (Lin et al. 2023, arXiv:2305.08891).
    zero_snr: bool = setting(False, "end the noise schedule in pure noise; not with epsilon")
    timesteps: int = 1000
    accumulate: int = setting(1, "split each batch into this many parts, to save memory", at_least=1)
    min_snr_gamma: float | None = setting(
        None, "weight the loss by min-SNR with this γ (the paper uses 5)", at_least=0.01
    )
    label_dropout: float = setting(
        0.1, "fraction of images trained without their label, for guidance", at_least=0, at_most=1
    )
    dropout: float = 0.0
    snapshots: int = setting(16, SNAPSHOTS, at_least=0, at_most=MAX_SNAPSHOTS)
    # Digits, letters and scenes with a left and a right must not be mirrored.
    flip: bool = setting(False, "mirror half of the images at random; not for digits or letters")
    size: int = setting(64, "side length of the images, for a folder of images", at_least=1, at_most=MAX_SIDE)
    background: str = setting("white", "color behind transparent images: a CSS name or #rrggbb")
    unreadable: str = setting("refuse", "what to do about broken image files", choices=UNREADABLE)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TrainingConfig:
        """The given settings, completed with the preset's and then the general defaults.

        Raises:
            TrainingError: for an unknown preset.
        """
        preset = PRESETS.get(given.get("preset", "small"))
        if preset is None:
            raise TrainingError(unknown("preset", given["preset"], PRESETS))
        return cls(**{**{name: getattr(preset, name) for name in FROM_PRESET}, **given})

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the training."""
        schedule = NoiseSchedule.from_name(self.beta_schedule, self.timesteps)
        return schedule.with_zero_terminal_snr() if self.zero_snr else schedule


def validate(config: TrainingConfig) -> None:
    """Refuse a configuration that cannot be trained.

    Raises:
        TrainingError: names the setting, its value and the limit.
    """
    validate_settings(config)
    if config.zero_snr and config.prediction_type == "epsilon":
        # At SNR 0 the input is the noise itself, so predicting it teaches nothing about the image.
        raise TrainingError(
            "prediction_type = 'epsilon' does not work with zero_snr: predicting pure noise says nothing about "
            "the image (known with zero_snr: v_prediction, sample)"
        )
    factor = PRESETS[config.preset].downscale
    if config.size % factor:
        raise TrainingError(
            f"size = {config.size} does not fit preset {config.preset!r}: it must be a multiple of {factor}"
        )
    if config.batch % config.accumulate:
        raise TrainingError(f"accumulate = {config.accumulate} does not divide batch = {config.batch}")
