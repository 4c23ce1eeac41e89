"""`denoised train-judge`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from denoised.command_line.options import option
from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.command_line import report_errors
from denoised.model.evaluation.text_to_image.judge import save_judge
from denoised.model.evaluation.text_to_image.judge_trainer import JudgeTrainer, JudgeTrainingConfig, disturb
from denoised.model.progress import progress
from denoised.model.training.datasets.dataset import to_unit
from denoised.model.training.emoji.emoji_pictures import EmojiPictures, render_pictures
from denoised.model.training.emoji.icon_packages import read_emoji
from denoised.model.training.run.run_checkpoints import load_newest_checkpoint, save_state
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.sample_grid import contact_sheet
from denoised.model.training.run.training_run import RunOutputs, RunSchedule, run_learner
from denoised.model.training.setting_options import with_setting_options
from denoised.model.training.settings import validate_settings

PICTURES = "pictures.npz"
SHEET_COLUMNS, SHEET_PICTURES = 10, 40


@with_setting_options(JudgeTrainingConfig, ())
def train_judge(
    *,
    data: Annotated[
        Path, option("--data", help="the packages of drawings, or the folder of a run that has rendered them")
    ],
    out: Annotated[Path, option("--out", help="the folder of the run; the judge is written to OUT/model")],
    resume: Annotated[bool, option("--resume", help="continue from the newest checkpoint in OUT")] = False,
    device: Annotated[str, option("--device", help="cpu, cuda or mps")] = "cpu",
    given: dict[str, Any],
) -> None:
    """Train the network that names object, style and background of emoji, for `denoised evaluate-text`.

    Ctrl-C saves a checkpoint and stops; --resume continues exactly from there.
    """
    console, folder = Console(), RunFolder(out)
    with report_errors("train-judge"):
        config = folder.config_to_resume(given, JudgeTrainingConfig) if resume else JudgeTrainingConfig(**given)
        validate_settings(config)
        if config.threads:
            torch.set_num_threads(config.threads)
        folder.write_config(config) if resume else folder.create(config)
        trainer = JudgeTrainer(config, load_pictures(data, console), device)
        if resume:
            load_newest_checkpoint(trainer, folder)
        signum = run_learner(trainer, folder, RunSchedule(), console, RunOutputs(_save, _draw))
    if signum is not None:
        console.print("Stopped; continue with --resume.", highlight=False)
        raise typer.Exit(128 + signum)
    console.print(f"Done: {folder.model}", highlight=False, soft_wrap=True, markup=False)


def load_pictures(data: Path, console: Console) -> EmojiPictures:
    """The drawings in a folder: rendered before, or rendered now from the packages.

    Raises:
        DataError: if there are none.
    """
    if (data / PICTURES).exists():
        return EmojiPictures.load(data / PICTURES)
    emoji = read_emoji(data)
    with progress(console, "rendering", sum(len(each.drawings) for each in emoji), "drawings") as advance:
        return render_pictures(emoji, advance)


def _save(trainer: JudgeTrainer, folder: RunFolder) -> None:
    """Write a checkpoint, and the judge with the averaged weights."""
    save_state(trainer, folder)
    training = {"images_seen": trainer.images_seen, "steps": trainer.step, **dataclasses.asdict(trainer.config)}
    save_judge(folder.model, trainer.ema, trainer.card.model_copy(update={"training": training}))


def _draw(trainer: JudgeTrainer, folder: RunFolder) -> None:
    """Write a sheet of pictures as the judge sees them in training."""
    stride = max(1, trainer.pictures.combinations // SHEET_PICTURES)
    combinations = torch.arange(trainer.pictures.combinations)[::stride][:SHEET_PICTURES].numpy()
    pixels = to_unit(trainer.pictures.on_colors(combinations))
    seen = disturb(pixels, trainer.config, torch.Generator().manual_seed(trainer.step))
    images = ((seen + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    sheet = contact_sheet(list(images), SHEET_COLUMNS)
    write_atomically(folder.sample_grid(trainer.images_seen), lambda temporary: sheet.save(temporary, format="png"))
