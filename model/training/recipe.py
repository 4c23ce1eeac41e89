"""What a run is made of: presets, and everything that decides its numbers.

Knows no weights and no files; `model.training.trainer` runs what stands here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from denoised.model.diffusion.noise import BETAS, NoiseSchedule
from denoised.model.diffusion.predictions import PREDICTION_TYPES
from denoised.model.errors import TrainingError
from denoised.model.networks.config import UNetConfig
from denoised.model.training.data import UNREADABLE, Dataset


@dataclass(frozen=True)
class Preset:
    """The shape of a network, and a length, batch, rate and number of threads that go with it.

    The data set decides size, channels and classes. threads: 0 is one a core.
    """

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int
    groups: int
    head_dim: int
    images: int
    batch: int
    learning_rate: float
    threads: int


#                     channels             attention at each level   layers groups head_dim  images batch rate threads
PRESETS = {
    "tiny":   Preset((16, 32),            (False, True),              1,      8,    16,    300_000,  128, 2e-3,    1),
    "small":  Preset((32, 64, 128),       (False, False, True),       1,      8,    32,  1_000_000,  128, 1e-3,    0),
    "medium": Preset((64, 128, 256),      (False, False, True),       2,     16,    64,  4_000_000,  128, 5e-4,    0),
    "large":  Preset((64, 128, 256, 256), (False, False, True, True), 2,     32,    64, 20_000_000,  128, 2e-4,    0),
}  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a run's numbers; stored beside it as `config.json`."""

    preset: str = "small"
    prediction_type: str = "v_prediction"
    beta_schedule: str = "squaredcos_cap_v2"
    zero_snr: bool = False  # the last timestep is pure noise (Lin et al. 2023, arXiv:2305.08891)
    timesteps: int = 1000
    images: int = 1_000_000  # seen in all
    batch: int = 128  # images an optimiser step
    accumulate: int = 1  # parts that a batch is worked off in, for less memory
    learning_rate: float = 1e-3
    lr_schedule: str = "cosine"  # or "constant"
    warmup: int = 500  # steps
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    min_snr_gamma: float | None = None  # None: the loss is not weighted
    label_dropout: float = 0.1
    dropout: float = 0.0
    flip: bool = False  # mirrors every other image; digits, letters and scenes with a left and a right are spoilt by it
    ema_decay: float = 0.999
    seed: int = 0
    precision: str = "auto"  # or "float32", "bfloat16"
    threads: int = 0  # of the CPU, which decides the last bits of sums; 0: one a core
    size: int = 64  # of a folder of images, as are the next two: see `model.training.data.load_image_folder`
    background: str = "white"
    unreadable: str = "refuse"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TrainingConfig:
        """What is given, and the rest as the preset has it.

        Raises:
            TrainingError: for a preset that is not known.
        """
        preset = PRESETS.get(given.get("preset", "small"))
        if preset is None:
            raise TrainingError(_unknown("preset", given["preset"], PRESETS))
        habits = {name: getattr(preset, name) for name in ("images", "batch", "learning_rate", "threads")}
        return cls(**{**habits, **given})

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels that are trained on."""
        schedule = NoiseSchedule.from_name(self.beta_schedule, self.timesteps)
        return schedule.with_zero_terminal_snr() if self.zero_snr else schedule

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return math.ceil(self.images / self.batch)

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, …: linear warm-up, then constant or half a cosine to zero."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        if self.lr_schedule == "constant":
            return self.learning_rate * warm
        done = min(1.0, step / max(self.steps, 1))
        return self.learning_rate * warm * (1 + math.cos(math.pi * done)) / 2


def unet_config(preset: str, dataset: Dataset, dropout: float = 0.0) -> UNetConfig:
    """The network for a data set: its channels and size, its K classes and the null class.

    Raises:
        TrainingError: when the pictures' size does not fit the preset.
    """
    shape = PRESETS[preset]
    channels, height, width = dataset.images.shape[1:]
    factor = 2 ** (len(shape.channels) - 1)
    if height % factor or width % factor:
        raise TrainingError(
            f"images of {width}×{height} do not fit preset {preset!r}: sides must be multiples of {factor}"
        )
    return UNetConfig(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=shape.channels,
        layers_per_block=shape.layers,
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in shape.attention),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(shape.attention)),
        attention_head_dim=shape.head_dim,
        norm_num_groups=shape.groups,
        dropout=dropout,
        num_class_embeds=len(dataset.labels) + 1,
    )


CHOICES: dict[str, Collection[str]] = {
    "preset": PRESETS,
    "prediction_type": PREDICTION_TYPES,
    "beta_schedule": BETAS,
    "lr_schedule": ("cosine", "constant"),
    "precision": ("auto", "float32", "bfloat16"),
    "unreadable": UNREADABLE,
}
# From, to; what is None is not asked for.
RANGES: dict[str, tuple[float, float]] = {
    "images": (1, math.inf),
    "batch": (1, math.inf),
    "accumulate": (1, math.inf),
    "learning_rate": (0, math.inf),
    "warmup": (0, math.inf),
    "min_snr_gamma": (0.01, math.inf),
    "label_dropout": (0, 1),
    "ema_decay": (0, 1),
    "threads": (0, 1024),
    "size": (1, math.inf),
}


def check(config: TrainingConfig) -> None:
    """Refuse what cannot be trained.

    Raises:
        TrainingError: names the option, the value and the limit.
    """
    for key, allowed in CHOICES.items():
        if getattr(config, key) not in allowed:
            raise TrainingError(_unknown(key, getattr(config, key), allowed))
    for key, (low, high) in RANGES.items():
        value = getattr(config, key)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            limit = f"at least {low}" if math.isinf(high) else f"{low} … {high}"
            raise TrainingError(f"{key} = {value} is out of range ({limit})")
    if config.zero_snr and config.prediction_type == "epsilon":
        raise TrainingError(
            "prediction_type = 'epsilon' with zero_snr: of pure noise it says nothing of the picture "
            "(known with zero_snr: v_prediction, sample)"
        )
    if config.batch % config.accumulate:
        raise TrainingError(f"accumulate = {config.accumulate} does not divide batch = {config.batch}")


def _unknown(key: str, value: object, allowed: Collection[str]) -> str:
    return f"{key} = {value!r} is not known (known: {', '.join(allowed)})"
