"""The log of a training run: means over the steps since the last line, appended to `metrics.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from rich.console import Console

from denoised.model.training.learner import Learner

METRICS_COLUMNS = ("step", "images", "loss", "grad_norm", "learning_rate", "images_per_second")


class MetricsLog:
    """Collects the metrics of single steps and writes their means, one line at a time.

    loss, gradient_norm: means since the last line; 0 right after one.
    images_per_second: speed since the last line, without the time spent in `paused`.
    """

    def __init__(self, path: Path, console: Console) -> None:
        self._path = path
        self._console = console
        self._reset()

    def _reset(self) -> None:
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._images = 0
        self._started = perf_counter()

    def add(self, loss: float, gradient_norm: float, images: int) -> None:
        """Add one step of so many images."""
        self._losses.append(loss)
        self._norms.append(gradient_norm)
        self._images += images

    @property
    def loss(self) -> float:
        return sum(self._losses) / max(len(self._losses), 1)

    @property
    def gradient_norm(self) -> float:
        return sum(self._norms) / max(len(self._norms), 1)

    @property
    def images_per_second(self) -> float:
        return self._images / max(perf_counter() - self._started, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside the block from the speed."""
        began = perf_counter()
        yield
        self._started += perf_counter() - began

    def write(self, learner: Learner) -> None:
        """Append a line to `metrics.csv` and start over; without any step since the last line, do nothing."""
        if not self._losses:
            return
        speed = self.images_per_second  # before the measurements, which take time
        measured = learner.measure()
        values = (
            learner.step,
            learner.images_seen,
            f"{self.loss:.6f}",
            f"{self.gradient_norm:.4f}",
            f"{learner.rate:.3e}",
            f"{speed:.1f}",
            *(f"{measured[name]:.6f}" for name in learner.measured),
        )
        is_new = not self._path.exists()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow((*METRICS_COLUMNS, *learner.measured))
            writer.writerow(values)
        if not self._console.is_terminal:
            further = "".join(f"  {name} {value:.4f}" for name, value in measured.items())
            self._console.print(
                f"{learner.images_seen:,} images  loss {self.loss:.4f}  {speed:.0f} images/s{further}", soft_wrap=True
            )
        self._reset()
