"""A training run from its first step to its model folder."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from denoised.model.training.loss_plot import can_plot, save_loss_plot
from denoised.model.training.metrics_log import MetricsLog
from denoised.model.training.run_checkpoints import save_checkpoint
from denoised.model.training.run_folder import RunFolder
from denoised.model.training.sample_grid import save_sample_grid
from denoised.model.training.trainer import Trainer


@dataclass(frozen=True)
class RunSchedule:
    """How often a run logs, saves and samples, in images seen. None of it changes the numbers of the run."""

    log_every: int = 6_400
    checkpoint_every: int = 25_600
    sample_every: int = 51_200


def run_training(trainer: Trainer, folder: RunFolder, schedule: RunSchedule, console: Console) -> int | None:
    """Train until the end or a stop signal, and always leave a checkpoint.

    Returns the signal that stopped the run, or None if it is finished.

    Raises:
        TrainingError: if the loss diverges.
    """
    log = MetricsLog(folder.metrics_file, console)
    with _stop_signals() as received, _progress_bar(trainer, log, console) as advance:
        if not can_plot():
            console.print(
                "No loss.png: matplotlib is not installed; it comes with denoised's extra 'train'.", soft_wrap=True
            )
        if trainer.step == 0:
            save_checkpoint(trainer, folder)  # from now on there is a run to resume, and a model folder
        while trainer.step < trainer.config.steps and not received:
            loss, norm = trainer.train_step()
            log.add(loss, norm, trainer.config.batch)
            advance()
            _log_save_and_sample(trainer, folder, schedule, log)
    _write_metrics(trainer, log)
    save_loss_plot(folder)
    save_checkpoint(trainer, folder)
    if trainer.step < trainer.config.steps:
        return received[0]
    if not folder.sample_grid(trainer.images_seen).exists():
        save_sample_grid(trainer, folder)
    return None


def _log_save_and_sample(trainer: Trainer, folder: RunFolder, schedule: RunSchedule, log: MetricsLog) -> None:
    """Do what is due after the last step."""
    if _is_due(trainer, schedule.log_every):
        _write_metrics(trainer, log)
    if _is_due(trainer, schedule.checkpoint_every):
        save_checkpoint(trainer, folder)
    if _is_due(trainer, schedule.sample_every):
        with log.paused():
            save_sample_grid(trainer, folder)
            save_loss_plot(folder)


def _is_due(trainer: Trainer, every: int) -> bool:
    """Whether the last step passed a multiple of `every` images."""
    return trainer.images_seen // every != (trainer.images_seen - trainer.config.batch) // every


def _write_metrics(trainer: Trainer, log: MetricsLog) -> None:
    log.write(trainer.step, trainer.images_seen, trainer.config.rate(trainer.step - 1))


@contextmanager
def _progress_bar(trainer: Trainer, log: MetricsLog, console: Console) -> Iterator[Callable[[], None]]:
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
            "", total=trainer.config.steps, completed=trainer.step, images=trainer.images_seen, loss=0.0, speed=0.0
        )

        def advance() -> None:
            progress.update(
                task,
                completed=trainer.step,
                images=trainer.images_seen,
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
