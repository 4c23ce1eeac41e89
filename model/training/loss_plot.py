"""The loss plot of a run: what `metrics.csv` says, drawn.

matplotlib comes with the extra `train` and is imported when there is something to draw; a run
goes on without it.
"""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REACH = 4  # lines of metrics on either side that the smoothed loss is a mean of


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot_loss(metrics: Path, path: Path) -> None:
    """Draw the loss, as logged and smoothed, and the learning rate over the images seen, as a PNG at `path`.

    Needs matplotlib, and a `metrics.csv` with at least one line.
    """
    figure = loss_figure(read_metrics(metrics))
    figure.savefig(path, format="png")


def read_metrics(path: Path) -> dict[str, list[float]]:
    """The columns of a run's `metrics.csv` by name."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def smoothed(values: list[float], reach: int = REACH) -> list[float]:
    """Means of each value and as many on its left as on its right, up to `reach`: no lag, and the ends stay."""
    means = []
    for k in range(len(values)):
        r = min(reach, k, len(values) - 1 - k)
        means.append(sum(values[k - r : k + r + 1]) / (2 * r + 1))
    return means


def loss_figure(metrics: dict[str, list[float]]) -> Any:
    """The matplotlib figure: no pyplot, so no window, no global state."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="images seen", ylabel="loss", yscale="log")
    images, loss = metrics["images"], metrics["loss"]
    raw = axes.plot(images, loss, color="tab:blue", alpha=0.35, linewidth=1, label="loss as logged")
    smooth = axes.plot(images, smoothed(loss), color="tab:blue", linewidth=2, label="smoothed")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3)
    right = axes.twinx()
    right.set_ylabel("learning rate")
    rate = right.plot(images, metrics["learning_rate"], color="tab:orange", linewidth=1, label="learning rate")
    right.set_ylim(bottom=0)
    axes.legend(handles=[*raw, *smooth, *rate], loc="upper right")
    return figure
