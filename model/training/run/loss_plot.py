"""The loss curve of a run, drawn from its `metrics.csv`.

matplotlib comes with the extra `train` and is imported only to draw; runs work without it.
"""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.training.run.run_folder import RunFolder

REACH = 4  # lines of metrics on either side that the smoothed loss averages over


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def save_loss_plot(folder: RunFolder) -> None:
    """Write `loss.png`, if there are metrics to draw and matplotlib is installed."""
    if can_plot() and folder.metrics_file.exists():
        write_atomically(folder.loss_plot, lambda temporary: plot_loss(folder.metrics_file, temporary))


def plot_loss(metrics: Path, path: Path) -> None:
    """Plot the loss, as logged and smoothed, and the learning rate over the images seen, as a PNG at `path`.

    Needs matplotlib, and a `metrics.csv` with at least one line.
    """
    figure = loss_figure(read_metrics(metrics))
    figure.savefig(path, format="png")


def read_metrics(path: Path) -> dict[str, list[float]]:
    """The columns of a run's `metrics.csv` by name."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def centered_mean(values: list[float], reach: int = REACH) -> list[float]:
    """A centered moving average over up to `reach` values on either side.

    The window shrinks symmetrically at the ends, so the curve neither lags nor loses its end points.
    """
    means = []
    for k in range(len(values)):
        r = min(reach, k, len(values) - 1 - k)
        means.append(sum(values[k - r : k + r + 1]) / (2 * r + 1))
    return means


def loss_figure(metrics: dict[str, list[float]]) -> Any:
    """The matplotlib figure. It is built without pyplot, which would open windows and keep global state."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="images seen", ylabel="loss", yscale="log")
    images, loss = metrics["images"], metrics["loss"]
    raw = axes.plot(images, loss, color="tab:blue", alpha=0.35, linewidth=1, label="loss as logged")
    smoothed = axes.plot(images, centered_mean(loss), color="tab:blue", linewidth=2, label="smoothed")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3)
    right = axes.twinx()
    right.set_ylabel("learning rate")
    rate = right.plot(images, metrics["learning_rate"], color="tab:orange", linewidth=1, label="learning rate")
    right.set_ylim(bottom=0)
    axes.legend(handles=[*raw, *smoothed, *rate], loc="upper right")
    return figure
