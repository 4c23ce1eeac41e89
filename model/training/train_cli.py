"""`denoised train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from denoised.command_line.console import print_status
from denoised.command_line.options import option
from denoised.model.command_line import report_errors
from denoised.model.errors import UnreadableImages
from denoised.model.serving.loading import load_model
from denoised.model.training.datasets.sources import load_dataset
from denoised.model.training.presets import FROM_PRESET
from denoised.model.training.run.run_checkpoints import load_newest_checkpoint
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.run_options import CheckpointEvery, Device, Out, Resume, SampleEvery
from denoised.model.training.run.training_run import RunSchedule, run_training
from denoised.model.training.setting_options import with_setting_options
from denoised.model.training.trainer import Trainer
from denoised.model.training.training_config import TrainingConfig, validate


@with_setting_options(TrainingConfig, FROM_PRESET)
def train(
    *,
    data: Annotated[
        Path,
        option(
            "--data",
            help="a folder with Fashion-MNIST's IDX files, or with one sub-folder of images per class; or the "
            "word digits",
        ),
    ],
    out: Out,
    resume: Resume = False,
    init: Annotated[
        Path | None, option("--init", help="start from the weights of a model folder with the same network")
    ] = None,
    device: Device = "cpu",
    sample_every: SampleEvery = RunSchedule.sample_every,
    checkpoint_every: CheckpointEvery = RunSchedule.checkpoint_every,
    given: dict[str, Any],
) -> None:
    """Train a model. Ctrl-C saves a checkpoint and stops; --resume continues exactly from there.

    The exit code is 130 after Ctrl-C and 143 after SIGTERM, as shells expect.
    """
    console = Console()
    folder = RunFolder(out)
    with report_errors("train"):
        trainer = _make_trainer(folder, data, device, init, given, resume)
        _print_summary(trainer, console)
        schedule = RunSchedule(checkpoint_every=checkpoint_every, sample_every=sample_every)
        signum = run_training(trainer, folder, schedule, console)
    if signum is not None:
        console.print(f"Stopped at step {trainer.step:,}; continue with --resume.", highlight=False)
        raise typer.Exit(128 + signum)
    console.print("Done. To serve the model under a name of its own:", highlight=False)
    for line in serving_commands(out):
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def _make_trainer(
    folder: RunFolder, data: Path, device: str, init: Path | None, given: dict[str, Any], resume: bool
) -> Trainer:
    """The trainer of a new run, or of the run in the folder as its newest checkpoint has it."""
    config = folder.config_to_resume(given, TrainingConfig) if resume else TrainingConfig.of(given)
    validate(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    if not resume:
        folder.check_new()
    try:
        dataset = load_dataset(data, config.size, background=config.background, unreadable=config.unreadable)
    except UnreadableImages as error:
        raise UnreadableImages(f"{error}, or pass --unreadable skip") from error
    if not resume:
        folder.create(config)
    trainer = Trainer(config, dataset, device)
    if resume:
        load_newest_checkpoint(trainer, folder)
        folder.write_config(config)
    elif init is not None:
        trainer.start_from(load_model(init, device=device).unet.state_dict())
    return trainer


def _print_summary(trainer: Trainer, console: Console) -> None:
    for file in trainer.dataset.skipped:
        print_status(f"skipped {file}")
    warning = trainer.config.warm_up_warning()
    if warning is not None:
        print_status(warning)
    parameters = sum(p.numel() for p in trainer.net.parameters())
    console.print(
        f"{len(trainer.dataset):,} images of {len(trainer.dataset.labels)} classes ({trainer.dataset.source}) · "
        f"{parameters / 1e6:.1f} M parameters · {str(trainer.amp_dtype).removeprefix('torch.')} · "
        f"step {trainer.step:,}",
        soft_wrap=True,
    )


def serving_commands(out: Path) -> list[str]:
    """Shell commands that serve a finished run. A model is served under its folder's name, so it is copied."""
    model = f"models/my-{out.absolute().name}"
    copy, serve = ["cp", "-r", str(out / "model"), model], ["denoised", "serve", "--model", model]
    return ["mkdir -p models", shlex.join(copy), shlex.join(serve)]
