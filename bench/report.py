"""`docs/performance.md`, from the rows of `docs/performance.csv` alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench import names
from bench.figures import Figure, Figures, Key
from bench.load import REAL_TRAFFIC, THREE_STEP_COUNTS
from bench.rows import ROWS, Row

DOCUMENT, TABLE = Path("performance.md"), Path("performance.csv")
CLIENTS_PLOT = Path("pictures/performance-clients.png")
BATCH_PLOT = Path("pictures/performance-batch.png")
SIZE_PLOT = Path("pictures/performance-size.png")

INTRODUCTION = """\
# How fast denoised is

Written by `make bench` from [performance.csv](performance.csv); do not edit. Beside denoised, as `denoised serve`
starts it, the same weights are served in float32, by DDIM with the same numbers of steps, by

- **(a)** FastAPI and a diffusers pipeline behind a lock, as tutorials do it;
- **(b)** LitServe and the same pipeline with request batching: at most 16 requests, 50 ms to wait for them, equal step
  counts in one batch of the network, with and without guidance apart;
- **(c)** a bare loop over diffusers' U-Net at its fastest batch size and memory format, without a server or a sampler.

Their programs are in `bench/peers`, their versions in `bench/peers/requirements.lock`."""

METHOD = """\
## How it was measured

- Evaluations are of the network, one an image; guidance takes two a step.
- **Three step counts**: 10, 20 and 50 steps, equally often. **Real traffic**: every number of steps from 5 to 60 once
  in 56 requests, a quarter of them guided. Sixteen clients ask in a closed loop, over HTTP, for PNGs, which are
  checked; all servers get the same requests in the same order, and make the same picture of the same request.
- (a) and (b) evaluate the network in the memory format in which diffusers loads it (contiguous) and with torch's own
  number of threads, as denoised does.
- All servers live through the whole run, and all but the one that is measured are held still (SIGSTOP). They take turns
  in every round. The client shares the cores with the server.
- A figure is the median over the rounds, in brackets the least and the greatest. A ratio is taken round by round.
- The bare engine loop is our engine without queue, store and pictures, with as many trajectories as the served run had.
- The convolutions alone: all of the network's, one after another, on inputs that lie in oneDNN's blocked
  layout already.
- One evaluation: subjects take turns in one process; ours is the network as the worker runs it."""


def document(figures: Figures) -> str:
    """The whole of `performance.md`."""
    parts = [
        INTRODUCTION,
        _bars(figures),
        *(_load_table(figures, load) for load in (THREE_STEP_COUNTS.name, REAL_TRAFFIC.name)),
        f"![Throughput and latency against clients]({CLIENTS_PLOT})",
        _evaluation_table(figures),
        f"![Images a second against batch size]({BATCH_PLOT})",
        f"![Time against the size of the image]({SIZE_PLOT})",
        METHOD,
        where(figures),
    ]
    return "\n\n".join(parts) + "\n"


def _bars(figures: Figures) -> str:
    measured = [(row, row.values(figures)) for row in ROWS]
    reached = sum(values is not None and row.reached(values) for row, values in measured)
    lines = [
        f"## What was to be reached: {reached} of {len(ROWS)}",
        "",
        "| | measured | bar | |",
        "|---|---|---|---|",
        *(_bar(row, values) for row, values in measured),
    ]
    reasons = [
        f"- {row.what}: {row.because}"
        for row, values in measured
        if row.because and values is not None and not row.reached(values)
    ]
    return "\n".join(lines + (["", "Why not:", "", *reasons] if reasons else []))


def _bar(row: Row, values: Sequence[float] | None) -> str:
    bar = f"{'≥' if row.at_least else '≤'} {row.bar:g}{row.unit}"
    if values is None:
        return f"| {row.what} | not measured yet | {bar} | |"
    verdict = "reached" if row.reached(tuple(values)) else "**not reached**"
    return f"| {row.what} | {spread(values, row.unit)} | {bar} | {verdict} |"


def _load_table(figures: Figures, load: str) -> str:
    subjects = (names.LOCKED, names.BATCHING, names.OURS, names.BARE, names.ENGINE)
    lines = [
        f"## {load[0].upper()}{load[1:]}, 16 clients",
        "",
        "| | evaluations/s | median latency, s | of 10 steps, s | rows in an evaluation |",
        "|---|---|---|---|---|",
        *(f"| {subject} | {' | '.join(_load_cells(figures, load, subject))} |" for subject in subjects),
    ]
    return "\n".join(lines)


def _load_cells(figures: Figures, load: str, subject: str) -> list[str]:
    quantities = (names.EVALUATIONS, names.LATENCY, names.SHORT_LATENCY, names.MEAN_BATCH)
    cells = [cell(figures.get(Key(names.LOADS, load, subject, quantity))) for quantity in quantities]
    chosen = figures.get(Key(names.LOADS, load, subject, names.CHOSEN_BATCH))
    return [*cells[:-1], cell(chosen)] if chosen is not None else cells


def _evaluation_table(figures: Figures) -> str:
    subjects = (names.OURS, names.CONTIGUOUS, names.CHANNELS_LAST, names.COMPILED, names.CONVOLUTIONS)
    lines = [
        "## One evaluation of the network, ms",
        "",
        f"| | {' | '.join(names.batch(images) for images in names.TABLE_BATCHES)} |",
        f"|---|{'---|' * len(names.TABLE_BATCHES)}",
    ]
    for subject in subjects:
        keys = [Key(names.KERNELS, names.batch(images), subject, names.MILLISECONDS) for images in names.TABLE_BATCHES]
        lines.append(f"| {subject} | {' | '.join(cell(figures.get(key)) for key in keys)} |")
    return "\n".join(lines)


def where(figures: Figures) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for key, figure in figures.items():
        sections = found.setdefault((str(figure.machine), figure.date), [])
        if key.section not in sections:
            sections.append(key.section)
    lines = [f"- {machine}; {date}: {', '.join(sections)}" for (machine, date), sections in found.items()]
    return "\n".join(["## Where and when", "", *(lines or ["Nothing is measured yet."])])


def cell(figure: Figure | None) -> str:
    return spread(figure.samples) if figure is not None else "–"


def spread(values: Sequence[float], unit: str = "") -> str:
    """The median, and the least and greatest where they differ from it: "1.62× (1.55–1.70)"."""
    middle, low, high = (shown(value) for value in (median(values), min(values), max(values)))
    return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low}–{high})"


def shown(value: float) -> str:
    """Three digits, none of them after hundreds."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
