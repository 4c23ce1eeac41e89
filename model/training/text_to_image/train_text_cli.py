"""`denoised train-text`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from denoised.command_line.console import print_status
from denoised.command_line.options import option
from denoised.model.command_line import report_errors
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.run_options import CheckpointEvery, Device, Out, Resume, SampleEvery
from denoised.model.training.run.training_run import RunSchedule
from denoised.model.training.setting_options import with_setting_options
from denoised.model.training.settings import validate_settings
from denoised.model.training.text_to_image.text_run import TextRun
from denoised.model.training.text_to_image.text_training_config import TextTrainingConfig


@with_setting_options(TextTrainingConfig, ())
def train_text(
    *,
    data: Annotated[
        Path | None,
        option("--data", help="the folder into which npm installed the packages of drawings; not needed to resume"),
    ] = None,
    out: Out,
    resume: Resume = False,
    device: Device = "cpu",
    sample_every: SampleEvery = RunSchedule.sample_every,
    checkpoint_every: CheckpointEvery = RunSchedule.checkpoint_every,
    given: dict[str, Any],
) -> None:
    """Train the emoji model: an autoencoder first, then a text encoder and a U-Net on its latents.

    Ctrl-C saves a checkpoint and stops; --resume continues exactly from there. The exit code is 130 after Ctrl-C and
    143 after SIGTERM, as shells expect.
    """
    console, folder = Console(), RunFolder(out)
    with report_errors("train-text"):
        config = folder.config_to_resume(given, TextTrainingConfig) if resume else TextTrainingConfig(**given)
        validate_settings(config)
        if config.threads:
            torch.set_num_threads(config.threads)
        if resume:
            folder.write_config(config)
        else:
            _create(folder, config)
        run = TextRun(folder, config, data, device, console)
        signum = run.train(RunSchedule(checkpoint_every=checkpoint_every, sample_every=sample_every))
    if signum is not None:
        console.print("Stopped; continue with --resume.", highlight=False)
        raise typer.Exit(128 + signum)
    console.print(f"Done: {folder.model}", highlight=False, soft_wrap=True, markup=False)


def _create(folder: RunFolder, config: TextTrainingConfig) -> None:
    """Create the folder of a new run, unless it already holds one."""
    RunFolder(folder.path / "autoencoder").check_new()
    warning = config.warm_up_warning()
    if warning is not None:
        print_status(warning)
    folder.create(config)
