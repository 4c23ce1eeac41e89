"""The plots of `docs/performance.md`, from the same figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import names
from bench.figures import Figure, Figures, section_of
from bench.report import BATCH_PLOT, CLIENTS_PLOT, SIZE_PLOT
from denoised.model.checkpoints.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

# Of Okabe and Ito's colours, told apart with any colour vision.
COLOURS = {
    names.OURS: "#0072B2",
    names.BATCHING: "#D55E00",
    names.CONTIGUOUS: "#D55E00",
    names.CHANNELS_LAST: "#009E73",
}
MARKERS = {names.OURS: "o", names.BATCHING: "s", names.CONTIGUOUS: "s", names.CHANNELS_LAST: "^"}
Curve = list[tuple[float, Figure]]


def write_plots(folder: Path, figures: Figures) -> None:
    """All three, as PNGs below `folder`."""
    for path, draw in ((CLIENTS_PLOT, _clients), (BATCH_PLOT, _batches), (SIZE_PLOT, _sizes)):
        (folder / path.parent).mkdir(parents=True, exist_ok=True)
        write_atomically(folder / path, partial(draw(figures).savefig, format="png"))


def _clients(figures: Figures) -> Drawing:
    drawing, (left, right) = _drawing(2)
    for axes, quantity in ((left, names.EVALUATIONS), (right, names.LATENCY)):
        _draw(axes, curves(figures, names.CLIENTS, quantity), "clients, each waiting for its picture", quantity)
    drawing.suptitle("Three step counts", fontsize=11)
    return drawing


def _batches(figures: Figures) -> Drawing:
    drawing, (axes,) = _drawing(1)
    found = curves(figures, names.SHAPES, names.MILLISECONDS, "batch ")
    _draw(
        axes, found, "images in an evaluation", "images/s, one evaluation each", lambda images, ms: 1000 * images / ms
    )
    return drawing


def _sizes(figures: Figures) -> Drawing:
    drawing, (axes,) = _drawing(1)
    found = curves(figures, names.SHAPES, names.MILLISECONDS, after=" pixels")
    _draw(axes, found, "width and height of the image, pixels", "ms an evaluation, one image", x_scale="linear")
    return drawing


def curves(figures: Figures, section: str, quantity: str, before: str = "", after: str = "") -> dict[str, Curve]:
    """By subject, the figures of a quantity whose condition is a number between `before` and `after`, rising."""
    found: dict[str, Curve] = {}
    for key, figure in section_of(figures, section).items():
        number = key.condition.removeprefix(before).removesuffix(after)
        if key.quantity == quantity and key.condition == f"{before}{number}{after}" and number.isdecimal():
            found.setdefault(key.subject, []).append((float(number), figure))
    return {subject: sorted(curve, key=lambda point: point[0]) for subject, curve in found.items()}


def _draw(
    axes: Axes,
    found: dict[str, Curve],
    x_label: str,
    y_label: str,
    value: Callable[[float, float], float] = lambda x, sample: sample,
    x_scale: str = "log",
) -> None:
    """Medians as lines, the least and greatest of the rounds as a band."""
    if not found:
        axes.text(0.5, 0.5, "not measured yet", ha="center")
        return
    for subject, curve in found.items():
        xs = [x for x, _ in curve]
        rounds = [[value(x, sample) for sample in figure.samples] for x, figure in curve]
        middles = [value(x, figure.median) for x, figure in curve]
        colour = COLOURS[subject]
        axes.plot(xs, middles, label=subject, color=colour, marker=MARKERS[subject], markersize=5, linewidth=1.6)
        axes.fill_between(xs, [min(r) for r in rounds], [max(r) for r in rounds], color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale(x_scale)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_xticks(sorted({x for curve in found.values() for x, _ in curve}))
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _plain(axes)


def _plain(axes: Axes) -> None:
    """Numbers as they are, without powers of ten, and no marks between them."""
    from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter

    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def _drawing(count: int) -> tuple[Drawing, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(1 + 4.5 * count, 3.8), dpi=100, layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing, list(drawing.subplots(1, count, squeeze=False)[0])
