"""The log of a training run: means over the steps since the last line, appended to `metrics.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from rich.console import Console

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

    def write(self, step: int, images_seen: int, learning_rate: float) -> None:
        """Append a line to `metrics.csv` and start over; without any step since the last line, do nothing."""
        if not self._losses:
            return
        values = (
            step,
            images_seen,
            f"{self.loss:.6f}",
            f"{self.gradient_norm:.4f}",
            f"{learning_rate:.3e}",
            f"{self.images_per_second:.1f}",
        )
        is_new = not self._path.exists()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(METRICS_COLUMNS)
            writer.writerow(values)
        if not self._console.is_terminal:
            self._console.print(f"{images_seen:,} images  loss {self.loss:.4f}  {self.images_per_second:.0f} images/s")
        self._reset()
