"""Everything that determines the numbers of a training run.

Each setting is declared once, as a field of `TrainingConfig`: its type, default, help text and limits. Validation
and the options of `denoised train` are derived from these declarations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from denoised.model.checkpoints.unet_config_file import MAX_SIDE
from denoised.model.diffusion.noise import BETAS, NoiseSchedule
from denoised.model.diffusion.predictions import PREDICTION_TYPES
from denoised.model.errors import TrainingError
from denoised.model.training.image_folder import UNREADABLE
from denoised.model.training.presets import FROM_PRESET, PRESETS


@dataclass(frozen=True)
class Setting:
    """What a field of `TrainingConfig` accepts and how the command line offers it.

    help: the help text of the option.
    flag: the option's name if it is not the field's, without dashes.
    choices: the allowed words; empty if there is no such list.
    at_least, at_most: inclusive limits of a number; no limits apply if at_least is None.
    """

    help: str
    flag: str | None = None
    choices: Collection[str] = ()
    at_least: float | None = None
    at_most: float = math.inf


def _setting(default: object, help: str, **details: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(help, **details)})


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that determines the numbers of a run; stored in its folder as `config.json`."""

    preset: str = _setting("small", "network preset, with the defaults that suit it", choices=PRESETS)
    prediction_type: str = _setting(
        "v_prediction", "what the network predicts", flag="prediction", choices=PREDICTION_TYPES
    )
    beta_schedule: str = _setting("squaredcos_cap_v2", "noise schedule", flag="schedule", choices=BETAS)
    # The last timestep is pure noise (Lin et al. 2023, arXiv:2305.08891).
    zero_snr: bool = _setting(False, "end the noise schedule in pure noise; not with epsilon")
    timesteps: int = 1000
    images: int = _setting(1_000_000, "number of images to train on, counting repetitions", at_least=1)
    batch: int = _setting(128, "images per optimizer step", at_least=1)
    accumulate: int = _setting(1, "split each batch into this many parts, to save memory", at_least=1)
    learning_rate: float = _setting(1e-3, "peak learning rate", at_least=0)
    lr_schedule: str = _setting("cosine", "learning rate schedule", choices=("cosine", "constant"))
    warmup: int = _setting(500, "steps of linear warm-up of the learning rate", at_least=0)
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    min_snr_gamma: float | None = _setting(
        None, "weight the loss by min-SNR with this γ (the paper uses 5)", at_least=0.01
    )
    label_dropout: float = _setting(
        0.1, "fraction of images trained without their label, for guidance", at_least=0, at_most=1
    )
    dropout: float = 0.0
    # Digits, letters and scenes with a left and a right must not be mirrored.
    flip: bool = _setting(False, "mirror half of the images at random; not for digits or letters")
    ema_decay: float = _setting(0.999, "decay of the moving average of the weights", at_least=0, at_most=1)
    seed: int = _setting(0, "seed of the initial weights, the order of the images and the noise")
    precision: str = _setting(
        "auto", "precision of the matrix products; auto times both", choices=("auto", "float32", "bfloat16")
    )
    # The thread count changes the last bits of sums.
    threads: int = _setting(0, "CPU threads; 0 means one per core", at_least=0, at_most=1024)
    size: int = _setting(64, "side length of the images, for a folder of images", at_least=1, at_most=MAX_SIDE)
    background: str = _setting("white", "color behind transparent images: a CSS name or #rrggbb")
    unreadable: str = _setting("refuse", "what to do about broken image files", choices=UNREADABLE)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TrainingConfig:
        """The given settings, completed with the preset's and then the general defaults.

        Raises:
            TrainingError: for an unknown preset.
        """
        preset = PRESETS.get(given.get("preset", "small"))
        if preset is None:
            raise TrainingError(_unknown("preset", given["preset"], PRESETS))
        return cls(**{**{name: getattr(preset, name) for name in FROM_PRESET}, **given})

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the training."""
        schedule = NoiseSchedule.from_name(self.beta_schedule, self.timesteps)
        return schedule.with_zero_terminal_snr() if self.zero_snr else schedule

    @property
    def steps(self) -> int:
        """Total number of optimizer steps."""
        return math.ceil(self.images / self.batch)

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, …: linear warm-up, then constant or half a cosine down to zero."""
        warmup = min(1.0, (step + 1) / max(self.warmup, 1))
        if self.lr_schedule == "constant":
            return self.learning_rate * warmup
        progress = min(1.0, step / max(self.steps, 1))
        return self.learning_rate * warmup * (1 + math.cos(math.pi * progress)) / 2

    def warm_up_warning(self) -> str | None:
        """What to say of a run that never reaches its learning rate; None if it does."""
        if self.steps >= self.warmup:
            return None
        reached = max(self.rate(step) for step in range(self.steps))
        return (
            f"the run of {self.steps:,} steps ends within its warm-up of {self.warmup:,}: its learning rate reaches "
            f"{reached:.1e} of {self.learning_rate:.1e} (--warmup, --images)"
        )


def settings() -> dict[str, Setting]:
    """The declared settings by field name; fields without one have no option and no limits."""
    return {each.name: each.metadata["setting"] for each in fields(TrainingConfig) if "setting" in each.metadata}


def validate(config: TrainingConfig) -> None:
    """Refuse a configuration that cannot be trained.

    Raises:
        TrainingError: names the setting, its value and the limit.
    """
    for name, setting in settings().items():
        _validate_value(name, getattr(config, name), setting)
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


def _validate_value(name: str, value: Any, setting: Setting) -> None:
    if setting.choices and value not in setting.choices:
        raise TrainingError(_unknown(name, value, setting.choices))
    low, high = setting.at_least, setting.at_most
    if low is None or value is None:
        return
    if not (math.isfinite(value) and low <= value <= high):
        limit = f"at least {low}" if math.isinf(high) else f"{low} … {high}"
        raise TrainingError(f"{name} = {value} is out of range ({limit})")


def _unknown(name: str, value: object, choices: Collection[str]) -> str:
    return f"{name} = {value!r} is not known (known: {', '.join(choices)})"
