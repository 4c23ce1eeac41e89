"""Everything that determines the numbers of a run of consistency tuning.

The options of `denoised tune-consistency` are derived from these declarations (`model.training.settings`).
"""

from __future__ import annotations

from dataclasses import dataclass

from denoised.model.training.learning_config import OPTIMIZERS, LearningConfig
from denoised.model.training.learning_rate import LR_SCHEDULES
from denoised.model.training.settings import setting


@dataclass(frozen=True)
class ConsistencyConfig(LearningConfig):
    """The settings of a run; stored in its folder as `config.json`.

    model_digest: of the teacher.
    """

    images: int = setting(60_000, "number of jumps to train on, counting repetitions", at_least=1)
    batch: int = setting(32, "jumps per optimizer step", at_least=1)
    learning_rate: float = setting(6e-4, "peak learning rate", at_least=0)
    lr_schedule: str = setting("trapezoid", "learning rate schedule", choices=LR_SCHEDULES)
    warmup: int = setting(50, "steps of linear warm-up of the learning rate", at_least=0)
    optimizer: str = setting("muon", "optimizer of the weights; muon learns more per image", choices=OPTIMIZERS)
    ema_decay: float = setting(0.99, "decay of the moving average of the weights", at_least=0, at_most=1)
    trajectories: int = setting(10_000, "number of the teacher's pictures to learn from", at_least=1)
    middle: float = setting(1.1, "noise level σ/α of the second jump; the teacher's nearest is taken", at_least=0)
    model_digest: str = ""
