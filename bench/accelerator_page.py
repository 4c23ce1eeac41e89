"""`docs/performance-cuda.md`, from the rows of `docs/performance-cuda.csv` alone."""

from __future__ import annotations

from pathlib import Path

from bench import names
from bench.evaluations import BATCHES
from bench.figures import Figure, Figures, Key
from bench.load import REAL_TRAFFIC, THREE_STEP_COUNTS
from bench.report import cell, spread, where
from bench.servers import Manner
from denoised.model.backends.graphs import BUCKET
from denoised.model.backends.numerics import PRECISIONS

DOCUMENT, TABLE = Path("performance-cuda.md"), Path("performance-cuda.csv")

INTRODUCTION = """\
# How fast denoised is on a GPU

Written by `python -m bench.accelerator` from [performance-cuda.csv](performance-cuda.csv); do not edit. The same
weights, DDIM and requests as in [performance.md](performance.md), which says what the peers and the two loads are; here
everybody evaluates on the GPU, in the precision that is named: float32 with IEEE convolutions and products (torch's own
default is TF32 in convolutions), TF32, or bfloat16 in the network and float32 in the sampler."""

EVALUATIONS = f"""\
## One evaluation of the network, ms

The host's waiting for the device included: medians of rounds in which the subjects take turns, in brackets the least
and the greatest. denoised evaluates {BUCKET} images at a time, whatever is asked for (docs/decisions.md says why), and
compiles nothing."""

METHOD = """\
## How it was measured

- Sixteen clients ask in a closed loop, over HTTP, for PNGs, which are checked; one request is compared with the CPU's
  picture first. All servers live through the whole run, and all but the one that is measured are held still (SIGSTOP).
  They take turns in every round.
{window}- A figure is the median over the rounds, in brackets the least and the greatest. The last column is denoised's
  evaluations/s (for one client: its time) divided by those of the row, in the same precision, round by round.
- Compiled: `torch.compile(mode="reduce-overhead", dynamic=False)`, CUDA graphs that is, all of them compiled before a
  server says that it is ready. (a) for 1 row and for the 2 of guidance, in a thread of its own, to which CUDA graphs
  belong. (b) for 4, 16 and 32 rows; a batch of another size is filled up with rows of zeros to the next of them. (c)
  for 256 images. denoised compiles nothing and takes no such time at its start.
- (c) is at the batch size and memory format that are fastest for it, of 16, 64 and 256 images, whatever sixteen clients
  could keep busy; it waits for the device every eighth evaluation, has no sampler and makes no pictures.
- Our bare engine loop is the engine without queue, store and pictures, with as many trajectories as the served run."""


def document(figures: Figures) -> str:
    """The whole page."""
    loads = (THREE_STEP_COUNTS.name, REAL_TRAFFIC.name)
    parts = [
        INTRODUCTION,
        EVALUATIONS,
        _evaluations(figures),
        *(f"## {load[0].upper()}{load[1:]}, 16 clients\n\n{_load(figures, load)}" for load in loads),
        f"## One client, 20 steps\n\n{_one_client(figures)}",
        METHOD.format(window=_window(figures)),
        where(figures),
    ]
    return "\n\n".join(parts) + "\n"


def _evaluations(figures: Figures) -> str:
    batches = [names.batch(images) for images in BATCHES]
    found = [key.subject for key in figures if key.section == names.ONE_EVALUATION]
    rows = [
        [name, *(cell(figures.get(Key(names.ONE_EVALUATION, batch, name, names.MILLISECONDS))) for batch in batches)]
        for name in dict.fromkeys(found)
    ]
    return _table(["", *batches], rows)


def _load(figures: Figures, load: str) -> str:
    def of(subject: str, quantity: str) -> Figure | None:
        return figures.get(Key(names.LOADS, load, subject, quantity))

    rows = []
    for ours, subject in _subjects():
        rate = of(subject, names.EVALUATIONS)
        if rate is None:
            continue
        latencies = [cell(of(subject, quantity)) for quantity in (names.LATENCY, names.SHORT_LATENCY)]
        batch = cell(of(subject, names.CHOSEN_BATCH) or of(subject, names.MEAN_BATCH))
        rows.append(
            [subject, cell(rate), *latencies, batch, _ratio(of(ours, names.EVALUATIONS), rate, ours == subject)]
        )
    head = ["", "evaluations/s", "median latency, s", "of 10 steps, s", "rows in an evaluation", "denoised against it"]
    return _table(head, rows)


def _one_client(figures: Figures) -> str:
    def of(subject: str) -> Figure | None:
        return figures.get(Key(names.LOADS, names.ONE_CLIENT, subject, names.LATENCY))

    rows = []
    for ours, subject in _subjects():
        latency = of(subject)
        if latency is not None:
            rows.append([subject, cell(latency), _ratio(of(ours), latency, ours == subject)])
    return _table(["", "median latency, s", "denoised against it"], rows)


def _subjects() -> list[tuple[str, str]]:
    """Ours and whom it is held against, all that there can be, in the order of the tables."""
    pairs = []
    for precision in PRECISIONS:
        plain, compiled = (Manner("cuda", precision, compiled=compiled) for compiled in (False, True))
        peers = [how.of(name) for name in (names.LOCKED, names.BATCHING, names.BARE) for how in (plain, compiled)]
        ours = plain.of(names.OURS)
        pairs += [(ours, subject) for subject in (*peers[:4], ours, *peers[4:], plain.of(names.ENGINE))]
    return pairs


def _ratio(mine: Figure | None, theirs: Figure, same: bool) -> str:
    """Round by round, for the rounds that both have."""
    if mine is None or same:
        return "–"
    return spread([a / b for a, b in zip(mine.samples, theirs.samples, strict=False)], "×")


def _window(figures: Figures) -> str:
    window = figures.get(Key(names.LOADS, names.WINDOW, names.EVERYBODY, names.SECONDS))
    if window is None:
        return ""
    return (
        f"- A window is {window.median:g} s after a quarter of that to warm up, for one client the half, and longer "
        "where fewer\n  than sixteen answers came.\n"
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "Not measured yet."
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
