"""`docs/quality.md` and its plot, from the rows of `docs/quality.csv` alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from denoised.model.checkpoints.atomic import write_atomically, write_text_atomically
from denoised.model.checkpoints.card_file import CardFile
from denoised.model.evaluation.features import FeatureCard
from denoised.model.evaluation.metrics import need
from denoised.model.evaluation.quality import (
    BUDGETS,
    FEW_TRAINING_IMAGES,
    HEADLINE_ACCURACY_SAMPLES,
    HEADLINE_SAMPLES,
    MODEL,
    NOISE,
    TRAINING,
    Measurement,
    Result,
    Rows,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOCUMENT, TABLE, PLOT = Path("quality.md"), Path("quality.csv"), Path("pictures/quality.png")
ACCURACY_AIM, FID_AIM, EVALUATIONS_AIM = 0.93, 0.02, 20
# Okabe and Ito's colours, told apart with any colour vision; yellow is left out, it is too faint for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = "os^Dv"
STYLES = ("-", "--")
LABEL_GAP = 0.038  # of the plot's height


@dataclass(frozen=True)
class Subject:
    """Of what the document speaks. weights, features: their hashes, as in the rows."""

    name: str
    weights: str
    features: str
    model: CardFile
    space: FeatureCard
    samples: int  # of each sampler of the sweep


def write_report(folder: Path, subject: Subject, rows: Rows) -> None:
    """`quality.md` and `pictures/quality.png` in `folder`.

    Raises:
        EvaluationError: without matplotlib.
    """
    (folder / PLOT.parent).mkdir(parents=True, exist_ok=True)
    write_plot(folder / PLOT, subject, rows)
    write_text_atomically(folder / DOCUMENT, document(subject, rows))


def document(subject: Subject, rows: Rows) -> str:
    """The whole of `quality.md`."""
    space = subject.space
    swept = swept_rows(subject, rows)
    parts = [
        f"# How good the pictures of {subject.name} are",
        "Written by `make quality` from [quality.csv](quality.csv); do not edit. Rows that stand there are not "
        "measured again.",
        _headline(subject, rows),
        f"## FID against evaluations, every sampler\n\n![FID against evaluations]({PLOT})",
        f"{subject.samples:,} pictures each, labels evenly over the classes, without guidance (so one evaluation a "
        "turn), as many steps as fit the budget. FID of fewer pictures is higher by its bias: compare these with each "
        "other, not with the table above.",
        *(_budget_table(budget, swept) for budget in BUDGETS),
        "## What was measured, and how",
        f"- Reference: the {space.test_images:,} test images ({space.data}). Generated and real pictures are both "
        "bytes before anything is measured.\n"
        f"- Feature space: {space.widths[-1]} features of a residual classifier (`denoised train-features`) that names "
        f"{space.test_accuracy:.2%} of the test images right; weights `{subject.features}`. FID in this space cannot "
        "be compared with FID in Inception's.\n"
        "- FID and KID: torchmetrics, float64. KID: mean ± deviation over 100 subsets of 1,000. Precision and recall: "
        "Kynkäänniemi et al. 2019, k = 3. Class accuracy: the share that the feature network names as asked.\n"
        f"- Model: weights `{subject.weights}`. Arithmetic of the network: {_arithmetic(subject, rows)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _arithmetic(subject: Subject, rows: Rows) -> str:
    """In words: float32 for the table at the top, say, and bfloat16 for the sweep."""
    swept = {question.arithmetic for question, _ in swept_rows(subject, rows)}
    guided = {q.arithmetic for q in rows if q.weights == subject.weights and q.samples != subject.samples}
    named = (("the table at the top", guided), ("the sweep", swept))
    return "; ".join(f"{what}, {' and '.join(sorted(kinds))}" for what, kinds in named if kinds) or "not measured yet"


def swept_rows(subject: Subject, rows: Rows) -> list[tuple[Measurement, Result]]:
    """The sweep's: this model in this space, without guidance, η 0, so many samples."""
    return [
        (question, answer)
        for question, answer in rows.items()
        if (question.source, question.weights, question.features) == (MODEL, subject.weights, subject.features)
        and (question.samples, question.guidance_scale, question.eta) == (subject.samples, 1.0, 0.0)
    ]


def _headline(subject: Subject, rows: Rows) -> str:
    default = subject.model.default
    found = {
        (question.source, question.samples): answer
        for question, answer in rows.items()
        if question.features == subject.features
        and (
            question.source != MODEL
            or (question.weights, question.sampler, question.steps, question.guidance_scale)
            == (subject.weights, default.sampler, default.steps, default.guidance_scale)
        )
    }
    noise = found.get((NOISE, HEADLINE_SAMPLES))
    how = f"the model, `{default.sampler}`, {default.steps} steps, guidance {default.guidance_scale:g}"
    lines = [
        "| pictures | number | FID | of noise's | KID | precision | recall | class accuracy |",
        "|---|---|---|---|---|---|---|---|",
        *(
            _headline_row(name, count, found.get((source, count)), noise)
            for name, source, count in (
                ("uniform noise", NOISE, HEADLINE_SAMPLES),
                ("training images", TRAINING, HEADLINE_SAMPLES),
                ("training images", TRAINING, FEW_TRAINING_IMAGES),
                (how, MODEL, HEADLINE_SAMPLES),
                (how, MODEL, HEADLINE_ACCURACY_SAMPLES),
            )
        ),
    ]
    return "\n".join(lines) + "\n\n" + _reached(found, noise)


def _headline_row(name: str, count: int, answer: Result | None, noise: Result | None) -> str:
    if answer is None:
        return f"| {name} | {count:,} | not measured yet | | | | | |"
    share = f"{answer.fid / noise.fid:.3%}" if noise is not None else ""
    return f"| {name} | {count:,} | {answer.fid:.4g} | {share} | {_rest(answer)} |"


def _rest(answer: Result) -> str:
    accuracy = f"{answer.class_accuracy:.1%}" if answer.class_accuracy is not None else "–"
    return f"{answer.kid:.3g} ± {answer.kid_std:.1g} | {answer.precision:.3f} | {answer.recall:.3f} | {accuracy}"


def _reached(found: dict[tuple[str, int], Result], noise: Result | None) -> str:
    """What was aimed at, and whether it was reached."""
    many, few = found.get((MODEL, HEADLINE_SAMPLES)), found.get((MODEL, HEADLINE_ACCURACY_SAMPLES))
    if many is None or few is None or few.class_accuracy is None or noise is None:
        return "Whether the aims are reached is not measured yet."
    share = many.fid / noise.fid
    return (
        f"Aimed at, with the card's defaults: at most {EVALUATIONS_AIM} evaluations a guidance branch "
        f"({many.evaluations}: {_yes(many.evaluations <= EVALUATIONS_AIM)}); at least {ACCURACY_AIM:.0%} class "
        f"accuracy of {HEADLINE_ACCURACY_SAMPLES:,} pictures ({few.class_accuracy:.2%}: "
        f"{_yes(few.class_accuracy >= ACCURACY_AIM)}); an FID of {HEADLINE_SAMPLES:,} pictures below {FID_AIM:.0%} of "
        f"noise's ({share:.3%}: {_yes(share < FID_AIM)})."
    )


def _yes(reached: bool) -> str:
    return "reached" if reached else "not reached"


def _budget_table(budget: int, swept: Sequence[tuple[Measurement, Result]]) -> str:
    rows = sorted(((q, a) for q, a in swept if budget_of(a.evaluations) == budget), key=lambda row: row[1].fid)
    lines = [
        f"At most {budget} evaluations, best first:",
        "",
        "| sampler | steps | evaluations | FID | KID | precision | recall | class accuracy |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| `{q.sampler}` | {q.steps} | {a.evaluations} | {a.fid:.4g} | {_rest(a)} |" for q, a in rows),
    ]
    return "\n".join(lines)


def budget_of(evaluations: int) -> int | None:
    """The least budget of the sweep that so many evaluations fit in."""
    return next((budget for budget in BUDGETS if evaluations <= budget), None)


def write_plot(path: Path, subject: Subject, rows: Rows) -> None:
    """FID against evaluations, one line a sampler, named where it ends.

    Raises:
        EvaluationError: without matplotlib.
    """
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    curves: dict[str, list[tuple[int, float]]] = {}
    for question, answer in swept_rows(subject, rows):
        curves.setdefault(question.sampler, []).append((answer.evaluations, answer.fid))
    figure = Figure(figsize=(8.5, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlim=(min(BUDGETS) * 0.7, max(BUDGETS) * 1.05), xticks=BUDGETS)
    for k, (sampler, points) in enumerate(sorted(curves.items())):
        axes.plot(*zip(*sorted(points), strict=True), label=sampler, **_style(k))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("evaluations of the network, an image")
    axes.set_ylabel(f"FID of {subject.samples:,} pictures (lower is better)")
    axes.set_title(f"{subject.name}, without guidance")
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _name_lines(axes)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _style(k: int) -> dict[str, Any]:
    """Colours first, then dashes: no two of the first fourteen look alike."""
    return {
        "color": COLOURS[k % len(COLOURS)],
        "linestyle": STYLES[k // len(COLOURS) % len(STYLES)],
        "marker": MARKERS[k % len(MARKERS)],
        "markersize": 5,
        "linewidth": 1.6,
    }


def _name_lines(axes: Axes) -> None:
    """Each line's label to the right of its last point, moved where it would cover another."""
    ends = [(*np.asarray(line.get_xydata())[-1].tolist(), line) for line in axes.lines]
    ends.sort(key=lambda end: float(end[1]))
    low, high = (math.log(limit) for limit in axes.get_ylim())
    wanted = [(math.log(y) - low) / (high - low) for _, y, _ in ends]
    for (x, y, line), height in zip(ends, apart(wanted, LABEL_GAP), strict=True):
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


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Rising heights at least `gap` apart, on average where they were wanted; wanted: rising."""
    heights: list[float] = []
    for height in wanted:
        heights.append(max(height, heights[-1] + gap) if heights else height)
    shift = (sum(heights) - sum(wanted)) / max(len(heights), 1)
    return [height - shift for height in heights]
