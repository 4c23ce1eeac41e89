"""A training run on disk, from its first step to a model folder.

config.json                          what decides the numbers
metrics.csv                          step, images, loss, gradient norm, learning rate, images/s
loss.png                             the same drawn, where matplotlib is installed
samples/00012800.png                 a grid of samples by the averaged weights, the last of the finished run
checkpoints/step-00000100.safetensors   the newest two, each whole or not there
model/                               a diffusers folder of the averaged weights, ready to serve
"""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from denoised.model.checkpoints.atomic import write_atomically, write_text_atomically
from denoised.model.checkpoints.card_file import CardFile, Defaults
from denoised.model.checkpoints.writing import save_model, scheduler_config
from denoised.model.errors import TrainingError
from denoised.model.serving.loading import load_model
from denoised.model.serving.sampling import sample
from denoised.model.training.loss_plot import can_plot, plot_loss
from denoised.model.training.recipe import TrainingConfig
from denoised.model.training.trainer import Trainer

KEPT_CHECKPOINTS = 2
CHANGEABLE = ("images", "learning_rate")  # in a run that is resumed
METRICS = ("step", "images", "loss", "grad_norm", "learning_rate", "images_per_second")


@dataclass(frozen=True)
class RunSchedule:
    """What a run does beside training; changes no number of it. All in images seen."""

    log_every: int = 6_400
    checkpoint_every: int = 25_600
    sample_every: int = 51_200


def start(config: TrainingConfig, out: Path) -> None:
    """Make a new run folder.

    Raises:
        TrainingError: when there is a run already.
    """
    if checkpoints(out):
        raise TrainingError(f"{out} holds a run already: go on with --resume, or name another folder with --out")
    for name in ("checkpoints", "samples"):
        (out / name).mkdir(parents=True, exist_ok=True)
    store_config(config, out)


def store_config(config: TrainingConfig, out: Path) -> None:
    """Write down what decides the run's numbers from here on."""
    write_text_atomically(out / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def resumed_config(out: Path, given: Mapping[str, Any]) -> TrainingConfig:
    """The run's own settings; its length may be changed, and its rate (for a run that came apart).

    Raises:
        TrainingError: for anything else that differs, by name.
    """
    stored = stored_config(out)
    for name, value in given.items():
        if name not in CHANGEABLE and value != getattr(stored, name):
            raise TrainingError(
                f"{name} = {value} differs from the run's {getattr(stored, name)}: it goes on as it began "
                f"(what may change: {', '.join(CHANGEABLE)})"
            )
    return dataclasses.replace(stored, **given)


def stored_config(out: Path) -> TrainingConfig:
    """The configuration of the run in `out`.

    Raises:
        TrainingError: when there is none that can be read.
    """
    try:
        return TrainingConfig(**json.loads((out / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{out} holds no run to resume ({error})") from error


def checkpoints(out: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((out / "checkpoints").glob("step-*.safetensors"))


def resume(trainer: Trainer, out: Path) -> None:
    """Load the newest checkpoint that can be read, and clear away what a killed run left half done.

    Raises:
        TrainingError: when there is none.
    """
    for path in reversed(checkpoints(out)):
        try:
            trainer.load_state(load_file(path))
        except (SafetensorError, OSError):
            continue
        _forget_after(trainer.step, out)
        return
    raise TrainingError(f"{out} holds no complete checkpoint to resume")


def _forget_after(step: int, out: Path) -> None:
    """Remove half-written files, and the metrics of steps that are about to be done again."""
    for temporary in out.rglob(".*.tmp"):
        temporary.unlink()
    path = out / "metrics.csv"
    if path.exists():
        whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in whole[1:] if int(line.split(",")[0]) <= step]
        if kept:
            write_text_atomically(path, "".join(whole[:1] + kept))
        else:
            path.unlink()


def save(trainer: Trainer, out: Path) -> None:
    """Write a checkpoint and the model folder; drop checkpoints beyond the newest two."""
    path = out / "checkpoints" / f"step-{trainer.step:08d}.safetensors"
    write_atomically(path, lambda temporary: save_file(trainer.state(), temporary))
    for old in checkpoints(out)[:-KEPT_CHECKPOINTS]:
        old.unlink()
    export(trainer, out / "model")


def export(trainer: Trainer, folder: Path) -> None:
    """The averaged weights as a diffusers folder with a card."""
    config = trainer.config
    card = CardFile(
        labels=list(trainer.dataset.labels),
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
    save_model(folder, trainer.net.config, weights, scheduler, card)


def run(trainer: Trainer, out: Path, habits: RunSchedule, console: Console) -> int | None:
    """Train to the end or to a signal; always leaves a checkpoint. Returns the signal that stopped it, if any."""
    columns = (
        TextColumn("{task.fields[images]:>9,} images"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f} · {task.fields[speed]:.0f} images/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    config = trainer.config
    with _stop_signal() as stopped, Progress(*columns, console=console) as progress:
        task = progress.add_task(
            "", total=config.steps, completed=trainer.step, images=trainer.images_seen, loss=0.0, speed=0.0
        )
        window = _Window()
        if not can_plot():
            console.print(
                "No loss.png: matplotlib is not installed; it comes with denoised's extra 'train'.", soft_wrap=True
            )
        if trainer.step == 0:
            save(trainer, out)  # from here on there is a run to resume, and a model folder
        while trainer.step < config.steps and not stopped:
            loss, norm = trainer.train_step()
            window.add(loss, norm, config.batch)
            progress.update(
                task, completed=trainer.step, images=trainer.images_seen, loss=window.loss, speed=window.speed
            )
            if _crossed(trainer, habits.log_every):
                _log(trainer, out, window, console)
                window = _Window()
            if _crossed(trainer, habits.checkpoint_every):
                save(trainer, out)
            if _crossed(trainer, habits.sample_every):
                with window.paused():
                    save_grid(trainer, out)
                    save_plot(out)
    if window.losses:
        _log(trainer, out, window, console)
    save_plot(out)
    save(trainer, out)
    finished = trainer.step >= config.steps
    if finished and not _grid_path(trainer, out).exists():
        save_grid(trainer, out)
    return None if finished else stopped[0]


def save_grid(trainer: Trainer, out: Path, rows: int = 4, columns: int = 10) -> None:
    """A picture of `rows` samples each of the first classes (or of no class), by the averaged weights."""
    export(trainer, out / "model")
    model = load_model(out / "model", device=str(trainer.device))
    classes = len(trainer.dataset.labels)
    labels = [k % classes for k in range(min(classes, columns))] * rows
    images = list(model.decode(sample(model, labels, steps=20, guidance_scale=2.0)))
    sheet = contact_sheet(images, min(classes, columns))
    write_atomically(_grid_path(trainer, out), lambda temporary: sheet.save(temporary, format="png"))


def _grid_path(trainer: Trainer, out: Path) -> Path:
    return out / "samples" / f"{trainer.images_seen:08d}.png"


def save_plot(out: Path) -> None:
    """`loss.png`, if there is something to draw and to draw with."""
    metrics = out / "metrics.csv"
    if can_plot() and metrics.exists():
        write_atomically(out / "loss.png", lambda temporary: plot_loss(metrics, temporary))


def contact_sheet(images: Sequence[npt.NDArray[np.uint8]], columns: int, gap: int = 1) -> Image.Image:
    """Images (H, W, C) uint8 side by side, row by row, on a mid-grey ground."""
    height, width, channels = images[0].shape
    rows = -(-len(images) // columns)
    mode = "L" if channels == 1 else "RGB"
    ground = 128 if channels == 1 else (128, 128, 128)
    sheet = Image.new(mode, (columns * (width + gap) - gap, rows * (height + gap) - gap), ground)
    for k, pixels in enumerate(images):
        tile = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        sheet.paste(tile, ((k % columns) * (width + gap), (k // columns) * (height + gap)))
    return sheet


class _Window:
    """Means since the last line of metrics."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.images = 0
        self.started = perf_counter()

    def add(self, loss: float, norm: float, images: int) -> None:
        self.losses.append(loss)
        self.norms.append(norm)
        self.images += images

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the speed what is done meanwhile."""
        began = perf_counter()
        yield
        self.started += perf_counter() - began

    @property
    def loss(self) -> float:
        return sum(self.losses) / max(len(self.losses), 1)

    @property
    def norm(self) -> float:
        return sum(self.norms) / max(len(self.norms), 1)

    @property
    def speed(self) -> float:
        return self.images / max(perf_counter() - self.started, 1e-9)


def _crossed(trainer: Trainer, every: int) -> bool:
    """Whether the last step passed a multiple of `every` images."""
    return trainer.images_seen // every != (trainer.images_seen - trainer.config.batch) // every


def _log(trainer: Trainer, out: Path, window: _Window, console: Console) -> None:
    path = out / "metrics.csv"
    fresh = not path.exists()
    rate = trainer.config.rate(trainer.step - 1)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(METRICS)
        writer.writerow(
            (
                trainer.step,
                trainer.images_seen,
                f"{window.loss:.6f}",
                f"{window.norm:.4f}",
                f"{rate:.3e}",
                f"{window.speed:.1f}",
            )
        )
    if not console.is_terminal:
        console.print(f"{trainer.images_seen:,} images  loss {window.loss:.4f}  {window.speed:.0f} images/s")


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that is no longer empty once SIGINT or SIGTERM has come."""
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)

    old = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, previous in old.items():
            signal.signal(signum, previous)
