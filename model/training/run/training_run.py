"""A training run from its first step to its model folder."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from denoised.model.training.learner import Learner
from denoised.model.training.power_averages import snapshot_steps
from denoised.model.training.run.loss_plot import can_plot, save_loss_plot
from denoised.model.training.run.metrics_log import MetricsLog
from denoised.model.training.run.run_checkpoints import save_checkpoint
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.sample_grid import save_sample_grid
from denoised.model.training.run.snapshots import save_snapshot
from denoised.model.training.trainer import Trainer

AnyLearner = TypeVar("AnyLearner", bound=Learner)


@dataclass(frozen=True)
class RunSchedule:
    """How often a run logs, saves and samples, in images seen. None of it changes the numbers of the run."""

    log_every: int = 6_400
    checkpoint_every: int = 25_600
    sample_every: int = 51_200


@dataclass(frozen=True)
class RunOutputs(Generic[AnyLearner]):
    """How a run of one kind of learner writes its results.

    save: writes a checkpoint, and what is exported with it.
    draw: writes the sample grid.
    """

    save: Callable[[AnyLearner, RunFolder], None]
    draw: Callable[[AnyLearner, RunFolder], None]


def run_training(trainer: Trainer, folder: RunFolder, schedule: RunSchedule, console: Console) -> int | None:
    """`run_learner` for a class-conditional model."""
    return run_learner(trainer, folder, schedule, console, RunOutputs(save_checkpoint, save_sample_grid))


def run_learner(
    learner: AnyLearner, folder: RunFolder, schedule: RunSchedule, console: Console, outputs: RunOutputs[AnyLearner]
) -> int | None:
    """Train until the end or a stop signal, and always leave a checkpoint.

    Returns the signal that stopped the run, or None if it is finished.

    Raises:
        TrainingError: if the loss diverges.
    """
    log = MetricsLog(folder.metrics_file, console)
    with _stop_signals() as received, _progress_bar(learner, log, console) as advance:
        if not can_plot():
            console.print(
                "No loss.png: matplotlib is not installed; it comes with denoised's extra 'train'.", soft_wrap=True
            )
        if learner.step == 0:
            outputs.save(learner, folder)  # from now on there is a run to resume, and a model folder
        while learner.step < learner.steps and not received:
            loss, norm = learner.train_step()
            log.add(loss, norm, learner.batch)
            advance()
            _log_save_and_sample(learner, folder, schedule, log, outputs)
    log.write(learner)
    save_loss_plot(folder)
    outputs.save(learner, folder)
    if learner.step < learner.steps:
        return received[0]
    if not folder.sample_grid(learner.images_seen).exists():
        outputs.draw(learner, folder)
    return None


def _log_save_and_sample(
    learner: AnyLearner, folder: RunFolder, schedule: RunSchedule, log: MetricsLog, outputs: RunOutputs[AnyLearner]
) -> None:
    """Do what is due after the last step."""
    if learner.step in snapshot_steps(learner.config.snapshots, learner.steps):
        save_snapshot(learner, folder)
    if _is_due(learner, schedule.log_every):
        log.write(learner)
    if _is_due(learner, schedule.checkpoint_every):
        outputs.save(learner, folder)
    if _is_due(learner, schedule.sample_every):
        with log.paused():
            outputs.draw(learner, folder)
            save_loss_plot(folder)


def _is_due(learner: Learner, every: int) -> bool:
    """Whether the last step passed a multiple of `every` images."""
    return learner.images_seen // every != (learner.images_seen - learner.batch) // every


@contextmanager
def _progress_bar(learner: Learner, log: MetricsLog, console: Console) -> Iterator[Callable[[], None]]:
    """A progress bar; yields a function that redraws it after a step."""
    columns = (
        TextColumn("{task.fields[images]:>9,} images"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f} · {task.fields[speed]:.0f} images/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            "", total=learner.steps, completed=learner.step, images=learner.images_seen, loss=0.0, speed=0.0
        )

        def advance() -> None:
            progress.update(
                task,
                completed=learner.step,
                images=learner.images_seen,
                loss=log.loss,
                speed=log.images_per_second,
            )

        yield advance


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of acting on them."""
    received: list[int] = []

    def receive(signum: int, frame: FrameType | None) -> None:
        received.append(signum)

    previous = {signum: signal.signal(signum, receive) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
