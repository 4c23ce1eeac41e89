"""Everything that determines the numbers of a training run of a text-to-image model.

The options of `denoised train-text` are derived from these declarations (`model.training.settings`).
"""

from __future__ import annotations

from dataclasses import dataclass

from denoised.model.checkpoints.writing import scheduler_config
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.training.learning_config import MAX_SNAPSHOTS, OPTIMIZERS, SNAPSHOTS, LearningConfig
from denoised.model.training.learning_rate import LR_SCHEDULES
from denoised.model.training.settings import setting
from denoised.model.training.text_to_image.text_presets import TEXT_PRESETS, TextPreset

BETA_SCHEDULE, PREDICTION_TYPE, TIMESTEPS = "squaredcos_cap_v2", "v_prediction", 1000


@dataclass(frozen=True)
class AutoencoderTrainingConfig(LearningConfig):
    """The settings of the first stage.

    preset: a key of `TEXT_PRESETS`.
    edge_weight: of the error of the differences between neighboring pixels, in the loss.
    kl_weight: of the divergence of the latents from unit noise, a mean over their components, in the loss.
    """

    preset: str = "medium"
    edge_weight: float = 0.5
    kl_weight: float = 1e-4

    @property
    def shape(self) -> TextPreset:
        """The widths of the networks."""
        return TEXT_PRESETS[self.preset]


@dataclass(frozen=True)
class TextTrainingConfig(LearningConfig):
    """Everything that determines the numbers of a run; stored in its folder as `config.json`."""

    preset: str = setting("medium", "shape of the networks", choices=TEXT_PRESETS)
    images: int = setting(1_500_000, "number of images to train on, counting repetitions", at_least=1)
    batch: int = setting(64, "images per optimizer step", at_least=1)
    learning_rate: float = setting(5e-4, "peak learning rate", at_least=0)
    lr_schedule: str = setting("trapezoid", "learning rate schedule", choices=LR_SCHEDULES)
    optimizer: str = setting("muon", "optimizer of U-Net and text encoder", choices=OPTIMIZERS)
    warmup: int = setting(1000, "steps of linear warm-up of the learning rate", at_least=0)
    ema_decay: float = setting(0.9995, "decay of the moving average of the weights", at_least=0, at_most=1)
    snapshots: int = setting(16, SNAPSHOTS, at_least=0, at_most=MAX_SNAPSHOTS)
    autoencoder_images: int = setting(160_000, "number of images that the autoencoder is trained on", at_least=1)
    autoencoder_batch: int = setting(32, "images per step of the autoencoder", at_least=1)
    autoencoder_learning_rate: float = setting(1e-3, "peak learning rate of the autoencoder", at_least=0)
    edge_weight: float = setting(0.5, "weight of differences between neighboring pixels", at_least=0)
    kl_weight: float = setting(1e-4, "weight of the divergence of the latents from unit noise", at_least=0)

    @property
    def shape(self) -> TextPreset:
        """The widths of the networks."""
        return TEXT_PRESETS[self.preset]

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule; its last timestep is pure noise (Lin et al. 2023, arXiv:2305.08891)."""
        return NoiseSchedule.from_name(BETA_SCHEDULE, TIMESTEPS).with_zero_terminal_snr()

    @property
    def scheduler_file(self) -> dict[str, object]:
        """The content of `scheduler_config.json`; latents are not clipped.

        Trailing spacing has no offset, but `StableDiffusionPipeline` warns of any other than 1.
        """
        file = scheduler_config(BETA_SCHEDULE, PREDICTION_TYPE, TIMESTEPS, zero_snr=True)
        return {**file, "clip_sample": False, "steps_offset": 1}

    @property
    def autoencoder(self) -> AutoencoderTrainingConfig:
        """The settings of the first stage."""
        return AutoencoderTrainingConfig(
            preset=self.preset,
            images=self.autoencoder_images,
            batch=self.autoencoder_batch,
            learning_rate=self.autoencoder_learning_rate,
            warmup=min(self.warmup, 200),
            edge_weight=self.edge_weight,
            kl_weight=self.kl_weight,
            seed=self.seed,
            precision=self.precision,
            threads=self.threads,
        )
