"""The plot of `docs/quality.md`: FID against evaluations, one line per sampler and spacing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.diffusion.guidance import is_guided
from denoised.model.evaluation.quality_sweep import BUDGETS
from denoised.model.evaluation.quality_table import Measurement, Result
from denoised.model.evaluation.requirements import require_packages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT = Path("pictures/quality.png")
# Okabe and Ito's palette, which is distinguishable with any color vision; without yellow, too pale for a line.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = "os^Dv"
LAST_TICK = 40
DASHED = "trailing"
MAX_LINES = 12  # of one panel; the tables have the others
LABEL_GAP = 0.038  # smallest distance between two labels, as a fraction of the plot's height


@dataclass(frozen=True)
class References:
    """Results of as many images to compare with; None if they are not measured yet.

    training: of training images.
    default: of the model with its card's defaults.
    before: of the model with the defaults that it had before.
    """

    training: Result | None = None
    default: Result | None = None
    before: Result | None = None


def write_plot(
    path: Path,
    name: str,
    rows: Sequence[tuple[Measurement, Result]],
    references: References = References(),
) -> None:
    """Plot FID against evaluations, unguided and guided side by side: one line per sampler and spacing.

    name: of the model.

    Raises:
        EvaluationError: if matplotlib is not installed.
    """
    require_packages("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, guided in zip(
        panels, ("without guidance", "with the card’s guidance"), (False, True), strict=True
    ):
        _draw_lines(axes, [row for row in rows if is_guided(row[0].guidance_scale) is guided])
        _draw_references(axes, references, guided=guided)
        axes.set(xscale="log", yscale="log", xlim=(min(BUDGETS) * 0.8, LAST_TICK * 1.1), xticks=(*BUDGETS, LAST_TICK))
        axes.set_xlabel("evaluations of the network per image")
        axes.set_title(f"{name}, {title}")
    panels[0].set_ylabel("FID (lower is better)")
    for axes in panels:
        _format_axes(axes)
        _label_lines(axes)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw_lines(axes: Axes, rows: Sequence[tuple[Measurement, Result]]) -> None:
    """The lines of the samplers and spacings with the lowest FID; trailing timesteps are dashed."""
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for measurement, result in rows:
        curves.setdefault((measurement.sampler, measurement.spacing), []).append((result.evaluations, result.fid))
    best = sorted(curves, key=lambda each: min(fid for _, fid in curves[each]))[:MAX_LINES]
    samplers = sorted({sampler for sampler, _ in best})
    for sampler, spacing in sorted(best):
        k = samplers.index(sampler)
        style: dict[str, Any] = {"color": COLORS[k % len(COLORS)], "marker": MARKERS[k % len(MARKERS)], "markersize": 5}
        dashes = "--" if spacing == DASHED else "-"
        label = f"{sampler} {spacing}".rstrip()
        points = sorted(curves[sampler, spacing])
        axes.plot(*zip(*points, strict=True), label=label, linestyle=dashes, linewidth=1.6, **style)


def _draw_references(axes: Axes, references: References, *, guided: bool) -> None:
    """A line at training images, and in the guided panel the card's defaults now and before."""
    if references.training is not None:
        axes.axhline(references.training.fid, color="#777777", linewidth=1, linestyle=":")
        axes.annotate("training images", (min(BUDGETS) * 0.83, references.training.fid), va="bottom", color="#777777")
    for result, marker, text in ((references.default, "*", "now"), (references.before, "X", "before")):
        if guided and result is not None:
            point = (result.evaluations, result.fid)
            axes.scatter(*point, s=160, marker=marker, color="black", zorder=5)
            axes.annotate(f"the card {text}", point, xytext=(0, 9), textcoords="offset points", ha="center", zorder=6)


def _format_axes(axes: Axes) -> None:
    """Plain numbers instead of powers of ten, and light horizontal grid lines."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _label_lines(axes: Axes) -> None:
    """Label each line to the right of its last point, moved where labels would overlap."""
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    ends = [(*np.asarray(line.get_xydata())[-1].tolist(), line) for line in lines]
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
