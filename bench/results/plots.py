"""The plots of `docs/performance.md`, drawn from the same samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.results import sample_names as names
from bench.results.report import BATCH_PLOT, CLIENTS_PLOT, SIZE_PLOT
from bench.results.samples import SampleSeries, SampleTable, section_of
from denoised.model.checkpoints.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From Okabe and Ito's palette, which is distinguishable with any color vision.
COLORS = {
    names.DENOISED: "#0072B2",
    names.BATCHING: "#D55E00",
    names.CONTIGUOUS: "#D55E00",
    names.CHANNELS_LAST: "#009E73",
}
MARKERS = {names.DENOISED: "o", names.BATCHING: "s", names.CONTIGUOUS: "s", names.CHANNELS_LAST: "^"}
Curve = list[tuple[float, SampleSeries]]


def write_plots(folder: Path, table: SampleTable) -> None:
    """Write the three plots as PNGs below `folder`."""
    for path, draw in ((CLIENTS_PLOT, _plot_clients), (BATCH_PLOT, _plot_batches), (SIZE_PLOT, _plot_sizes)):
        (folder / path.parent).mkdir(parents=True, exist_ok=True)
        write_atomically(folder / path, partial(draw(table).savefig, format="png"))


def _plot_clients(table: SampleTable) -> Figure:
    figure, (left, right) = _new_figure(2)
    for axes, quantity in ((left, names.EVALUATIONS), (right, names.LATENCY)):
        _draw(axes, curves(table, names.CLIENTS, quantity), "clients, each waiting for its image", quantity)
    figure.suptitle("Three step counts", fontsize=11)
    return figure


def _plot_batches(table: SampleTable) -> Figure:
    figure, (axes,) = _new_figure(1)
    found = curves(table, names.SHAPES, names.MILLISECONDS, "batch ")
    _draw(axes, found, "batch size", "images/s, one evaluation each", lambda images, ms: 1000 * images / ms)
    return figure


def _plot_sizes(table: SampleTable) -> Figure:
    figure, (axes,) = _new_figure(1)
    found = curves(table, names.SHAPES, names.MILLISECONDS, suffix=" pixels")
    _draw(axes, found, "width and height of the image, pixels", "ms per evaluation, one image", x_scale="linear")
    return figure


def curves(table: SampleTable, section: str, quantity: str, prefix: str = "", suffix: str = "") -> dict[str, Curve]:
    """By subject, the series of a quantity whose condition is a number between prefix and suffix, ascending."""
    found: dict[str, Curve] = {}
    for key, series in section_of(table, section).items():
        number = key.condition.removeprefix(prefix).removesuffix(suffix)
        if key.quantity == quantity and key.condition == f"{prefix}{number}{suffix}" and number.isdecimal():
            found.setdefault(key.subject, []).append((float(number), series))
    return {subject: sorted(curve, key=lambda point: point[0]) for subject, curve in found.items()}


def _draw(
    axes: Axes,
    found: dict[str, Curve],
    x_label: str,
    y_label: str,
    value: Callable[[float, float], float] = lambda x, sample: sample,
    x_scale: str = "log",
) -> None:
    """Draw medians as lines, and the range of the rounds as a band. value: what to plot of a sample at x."""
    if not found:
        axes.text(0.5, 0.5, "not measured yet", ha="center")
        return
    for subject, curve in found.items():
        xs = [x for x, _ in curve]
        rounds = [[value(x, sample) for sample in series.samples] for x, series in curve]
        medians = [value(x, series.median) for x, series in curve]
        color = COLORS[subject]
        axes.plot(xs, medians, label=subject, color=color, marker=MARKERS[subject], markersize=5, linewidth=1.6)
        axes.fill_between(xs, [min(r) for r in rounds], [max(r) for r in rounds], color=color, alpha=0.15, linewidth=0)
    axes.set_xscale(x_scale)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_xticks(sorted({x for curve in found.values() for x, _ in curve}))
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _use_plain_numbers(axes)


def _use_plain_numbers(axes: Axes) -> None:
    """Label ticks with plain numbers instead of powers of ten, without minor ticks."""
    from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter

    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def _new_figure(count: int) -> tuple[Figure, list[Axes]]:
    """A figure without pyplot's global state, with so many axes side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 4.5 * count, 3.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])
