"""Everything that determines the numbers of a fine-tuning run.

The options of `denoised fine-tune` are derived from these declarations (`model.training.settings`).
"""

from __future__ import annotations

from dataclasses import dataclass

from denoised.model.training.learning_config import LearningConfig
from denoised.model.training.learning_rate import LR_SCHEDULES
from denoised.model.training.settings import setting


@dataclass(frozen=True)
class FineTuningConfig(LearningConfig):
    """The settings of a run; stored in its folder as `config.json`.

    model_digest: of the model that is fine-tuned.
    data_digest: of the pictures and captions.
    """

    images: int = setting(8_000, "number of images to train on, counting repetitions", at_least=1)
    batch: int = setting(4, "images per optimizer step", at_least=1)
    learning_rate: float = setting(1e-4, "peak learning rate", at_least=0)
    lr_schedule: str = setting("constant", "learning rate schedule", choices=LR_SCHEDULES)
    warmup: int = setting(100, "steps of linear warm-up of the learning rate", at_least=0)
    ema_decay: float = setting(0.999, "decay of the moving average of the weights", at_least=0, at_most=1)
    lora_rank: int = setting(
        0, "rank of a low-rank adapter; 0 trains all weights of the U-Net", at_least=0, at_most=1024
    )
    train_text_encoder: bool = setting(False, "train the text encoders with the U-Net, whole or as part of the adapter")
    caption_dropout: float = setting(0.1, "share of images without their caption, for guidance", at_least=0, at_most=1)
    background: str = setting("white", "background color of transparent images: a name or #rrggbb")
    model_digest: str = ""
    data_digest: str = ""
