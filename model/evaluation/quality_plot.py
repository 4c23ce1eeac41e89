"""The plot of `docs/quality.md`: FID against evaluations, one line per sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.evaluation.quality_sweep import BUDGETS
from denoised.model.evaluation.quality_table import Measurement, Result
from denoised.model.evaluation.requirements import require_packages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT = Path("pictures/quality.png")
# Okabe and Ito's palette, which is distinguishable with any color vision; without yellow, too pale for a line.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = "os^Dv"
STYLES = ("-", "--")
LABEL_GAP = 0.038  # smallest distance between two labels, as a fraction of the plot's height


def write_plot(path: Path, name: str, samples: int, rows: Sequence[tuple[Measurement, Result]]) -> None:
    """Plot FID against evaluations, one line per sampler, labeled at its end.

    name: of the model.
    samples: images behind each point.

    Raises:
        EvaluationError: if matplotlib is not installed.
    """
    require_packages("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[str, list[tuple[int, float]]] = {}
    for measurement, result in rows:
        curves.setdefault(measurement.sampler, []).append((result.evaluations, result.fid))
    figure = Figure(figsize=(8.5, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlim=(min(BUDGETS) * 0.7, max(BUDGETS) * 1.05), xticks=BUDGETS)
    for k, (sampler, points) in enumerate(sorted(curves.items())):
        axes.plot(*zip(*sorted(points), strict=True), label=sampler, **_line_style(k))
    axes.set_xlabel("evaluations of the network per image")
    axes.set_ylabel(f"FID of {samples:,} images (lower is better)")
    axes.set_title(f"{name}, without guidance")
    _format_axes(axes)
    _label_lines(axes)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _format_axes(axes: Axes) -> None:
    """Plain numbers instead of powers of ten, and light horizontal grid lines."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _line_style(k: int) -> dict[str, Any]:
    """The style of line k: colors vary first, then dashes, so the first fourteen all differ."""
    return {
        "color": COLORS[k % len(COLORS)],
        "linestyle": STYLES[k // len(COLORS) % len(STYLES)],
        "marker": MARKERS[k % len(MARKERS)],
        "markersize": 5,
        "linewidth": 1.6,
    }


def _label_lines(axes: Axes) -> None:
    """Label each line to the right of its last point, moved where labels would overlap."""
    ends = [(*np.asarray(line.get_xydata())[-1].tolist(), line) for line in axes.lines]
    ends.sort(key=lambda end: float(end[1]))
    low, high = (math.log(limit) for limit in axes.get_ylim())
    preferred = [(math.log(y) - low) / (high - low) for _, y, _ in ends]
    for (x, y, line), height in zip(ends, spread_out(preferred, LABEL_GAP), strict=True):
        axes.annotate(
            str(line.get_label()),
            (x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=line.get_color(),
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "linewidth": 0.5,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def spread_out(preferred: Sequence[float], gap: float) -> list[float]:
    """Ascending positions at least `gap` apart with the same mean as the preferred ones, which must ascend too."""
    positions: list[float] = []
    for position in preferred:
        positions.append(max(position, positions[-1] + gap) if positions else position)
    shift = (sum(positions) - sum(preferred)) / max(len(positions), 1)
    return [position - shift for position in positions]
