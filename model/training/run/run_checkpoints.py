"""Saving a training run, resuming it, and exporting its averaged weights as a model folder."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.checkpoints.card_file import CardFile, Defaults
from denoised.model.checkpoints.writing import save_model, scheduler_config
from denoised.model.errors import TrainingError
from denoised.model.training.learner import Learner
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.trainer import Trainer

KEPT_CHECKPOINTS = 2


def save_checkpoint(trainer: Trainer, folder: RunFolder) -> None:
    """Write a checkpoint and the model folder, then delete all but the newest two checkpoints."""
    save_state(trainer, folder)
    export_model(trainer, folder.model)


def save_state(learner: Learner, folder: RunFolder) -> None:
    """Write a checkpoint, then delete all but the newest two."""
    write_atomically(folder.checkpoint(learner.step), lambda temporary: save_file(learner.state(), temporary))
    # After the new one is complete, so that a killed run always finds one.
    for old in folder.checkpoints()[:-KEPT_CHECKPOINTS]:
        old.unlink()


def load_newest_checkpoint(learner: Learner, folder: RunFolder) -> None:
    """Load the newest readable checkpoint to continue the run, and remove what a killed run left incomplete.

    Raises:
        TrainingError: if there is no readable checkpoint.
    """
    read_newest_checkpoint(learner, folder)
    folder.discard_after(learner.step)


def read_newest_checkpoint(learner: Learner, folder: RunFolder) -> None:
    """Load the newest readable checkpoint of a run that may be in progress; its folder is only read.

    Raises:
        TrainingError: if there is no readable checkpoint.
    """
    for path in reversed(folder.checkpoints()):
        try:
            learner.load_state(load_file(path))
        except (SafetensorError, OSError):
            continue
        return
    raise TrainingError(f"{folder.path} holds no complete checkpoint to resume from")


def export_model(trainer: Trainer, path: Path) -> None:
    """Write the averaged weights as a diffusers folder with a model card."""
    config = trainer.config
    card = CardFile(
        labels=list(trainer.dataset.labels),
        unconditional=config.label_dropout > 0,  # without dropout the row of "no label" stays untrained
        default=Defaults(sampler="dpmpp_2m", steps=20, guidance_scale=1.5),
        data=f"{trainer.dataset.source}, {len(trainer.dataset):,} images",
        training={
            "images_seen": trainer.images_seen,
            "steps": trainer.step,
            "finished": datetime.now(UTC).strftime("%Y-%m-%d"),
            **dataclasses.asdict(config),
        },
    )
    scheduler = scheduler_config(
        config.beta_schedule, config.prediction_type, config.timesteps, zero_snr=config.zero_snr
    )
    weights = {name: value.cpu().contiguous() for name, value in trainer.ema.items()}
    save_model(path, trainer.net.config, weights, scheduler, card)
