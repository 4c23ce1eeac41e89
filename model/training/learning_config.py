"""The settings that every training run has, whatever it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from denoised.model.training.learning_rate import LR_SCHEDULES, rate_factor
from denoised.model.training.settings import setting

OPTIMIZERS = ("adamw", "muon")
SNAPSHOTS, MAX_SNAPSHOTS = "how often the averages for denoised ema are stored; 0 for never", 256


@dataclass(frozen=True)
class LearningConfig:
    """The settings of a `Learner`.

    beta2: of AdamW.
    clip_norm: a longer gradient is scaled down to this norm.
    snapshots: how often the averages for `denoised ema` are stored in a run.
    """

    images: int = setting(1_000_000, "number of images to train on, counting repetitions", at_least=1)
    batch: int = setting(128, "images per optimizer step", at_least=1)
    learning_rate: float = setting(1e-3, "peak learning rate", at_least=0)
    lr_schedule: str = setting("cosine", "learning rate schedule", choices=LR_SCHEDULES)
    warmup: int = setting(500, "steps of linear warm-up of the learning rate", at_least=0)
    optimizer: str = setting("adamw", "optimizer of the weights; muon learns more per image", choices=OPTIMIZERS)
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = setting(0.999, "decay of the moving average of the weights", at_least=0, at_most=1)
    snapshots: int = 0
    seed: int = setting(0, "seed of the initial weights, the order of the images and the noise")
    precision: str = setting(
        "auto", "precision of the matrix products; auto times both", choices=("auto", "float32", "bfloat16")
    )
    # The thread count changes the last bits of sums.
    threads: int = setting(0, "CPU threads; 0 means one per core", at_least=0, at_most=1024)

    @property
    def steps(self) -> int:
        """Total number of optimizer steps."""
        return math.ceil(self.images / self.batch)

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, …"""
        return self.learning_rate * rate_factor(self.lr_schedule, step, self.steps, self.warmup)

    def warm_up_warning(self) -> str | None:
        """What to say of a run that never reaches its learning rate; None if it does."""
        if self.steps >= self.warmup:
            return None
        reached = max(self.rate(step) for step in range(self.steps))
        return (
            f"the run of {self.steps:,} steps ends within its warm-up of {self.warmup:,}: its learning rate reaches "
            f"{reached:.1e} of {self.learning_rate:.1e} (--warmup, --images)"
        )


Config = TypeVar("Config", bound=LearningConfig)
