"""`denoised tune-consistency`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from denoised.command_line.console import print_status
from denoised.model.checkpoints.text_to_image.pipelines import is_text_pipeline
from denoised.model.command_line import report_errors
from denoised.model.errors import TrainingError
from denoised.model.networks.unet.score_network import ScoreUNet
from denoised.model.progress import progress
from denoised.model.serving.loading import load_for_serving, load_model
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.training.consistency.consistency_config import ConsistencyConfig
from denoised.model.training.consistency.consistency_outputs import consistency_outputs
from denoised.model.training.consistency.consistency_tuner import ConsistencyTuner
from denoised.model.training.consistency.trajectories import Teacher, Trajectories
from denoised.model.training.consistency.trajectory_store import draw_trajectories
from denoised.model.training.run.run_checkpoints import load_newest_checkpoint
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.run_options import CheckpointEvery, Device, Out, Resume, SampleEvery
from denoised.model.training.run.training_run import RunSchedule, run_learner
from denoised.model.training.setting_options import with_setting_options
from denoised.model.training.settings import validate_settings

LOG_EVERY, CHECKPOINT_EVERY, SAMPLE_EVERY = 1_600, 6_400, 25_600  # jumps


@with_setting_options(ConsistencyConfig, ())
def tune_consistency(
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="the model folder to learn from, of pixels")],
    out: Out,
    resume: Resume = False,
    device: Device = "cpu",
    sample_every: SampleEvery = SAMPLE_EVERY,
    checkpoint_every: CheckpointEvery = CHECKPOINT_EVERY,
    given: dict[str, Any],
) -> None:
    """Tune a model to draw in one or two evaluations, from pictures that it draws itself; no data are needed.

    It learns where its own trajectories end, from noise and from one level between, with the sampler, the steps and
    the guidance that its card names. OUT/model holds the tuned model. Ctrl-C saves a checkpoint and stops; --resume
    continues exactly from there. The exit code is 130 after Ctrl-C and 143 after SIGTERM, as shells expect.
    """
    console, folder = Console(), RunFolder(out)
    with report_errors("tune-consistency"):
        learner = _make_learner(folder, model, device, given, console, resume=resume)
        _print(learner, console)
        schedule = RunSchedule(LOG_EVERY, checkpoint_every, sample_every)
        signum = run_learner(learner, folder, schedule, console, consistency_outputs(model))
    if signum is not None:
        console.print("Stopped; continue with --resume.", highlight=False)
        raise typer.Exit(128 + signum)
    console.print(f"Done: {folder.model}", highlight=False, soft_wrap=True, markup=False)


def _make_learner(
    folder: RunFolder, model: Path, device: str, given: dict[str, Any], console: Console, *, resume: bool
) -> ConsistencyTuner:
    """The learner of a new run, or of the run in the folder as its newest checkpoint has it."""
    config = folder.config_to_resume(given, ConsistencyConfig) if resume else ConsistencyConfig(**given)
    validate_settings(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    if is_text_pipeline(model):
        raise TrainingError(f"{model} is a text-to-image model: consistency tuning is for models of pixels")
    served = load_for_serving(model, device=device).model
    assert isinstance(served, PixelModel)
    config = _with_digest(config, served.card.digest, resume=resume)
    teacher = Teacher(served, config.middle)
    student = load_model(model).unet
    if isinstance(student, ScoreUNet):
        raise TrainingError(f"{model} is a score network of exploding variance, which cannot be tuned")
    if resume:
        folder.write_config(config)
    else:
        folder.create(config)
    trajectories = _draw(folder, teacher, config.trajectories, console)
    learner = ConsistencyTuner(config, student, served.prediction_type, teacher.levels, trajectories, device)
    if resume and folder.checkpoints():  # none, if the run was stopped while it drew
        load_newest_checkpoint(learner, folder)
    return learner


def _draw(folder: RunFolder, teacher: Teacher, count: int, console: Console) -> Trajectories:
    with progress(console, "trajectories", count, "pictures") as advance:
        return draw_trajectories(folder.path / "trajectories", teacher, count, advance)


def _with_digest(config: ConsistencyConfig, digest: str, *, resume: bool) -> ConsistencyConfig:
    """The configuration with the digest of the teacher; a resumed run has to have the same.

    Raises:
        TrainingError: if it has another.
    """
    if resume and config.model_digest != digest:
        raise TrainingError(
            f"MODEL is not that of the run to resume (digest {digest}, the run's: {config.model_digest})"
        )
    return dataclasses.replace(config, model_digest=digest)


def _print(learner: ConsistencyTuner, console: Console) -> None:
    if learner.step == 0 and (warning := learner.config.warm_up_warning()) is not None:
        print_status(warning)
    parameters = sum(p.numel() for p in learner.net.parameters())
    levels = ", ".join(f"{ratio:.4g}" for ratio in learner.levels.ratios)
    console.print(
        f"{len(learner.trajectories):,} trajectories · jumps from noise levels {levels} · "
        f"{parameters / 1e6:.1f} M parameters · {str(learner.amp_dtype).removeprefix('torch.')} · "
        f"step {learner.step:,} of {learner.steps:,}",
        soft_wrap=True,
        highlight=False,
    )
