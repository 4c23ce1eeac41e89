"""The bars, and what a row of the table makes of the figures. Nothing here is typed in by hand but the bars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench import names
from bench.figures import Figure, Figures, Key, least, ratios
from bench.load import REAL_TRAFFIC, THREE_STEP_COUNTS

Values = tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One line of the table: what was to be reached, and the values of the rounds, of which the median counts.

    because: why it is not reached, where that is known; shown only then.
    """

    what: str
    bar: float
    unit: str
    at_least: bool
    values: Callable[[Figures], Values | None]
    because: str = ""

    def reached(self, values: Values) -> bool:
        return median(values) >= self.bar if self.at_least else median(values) <= self.bar


def _figure(figures: Figures, section: str, condition: str, subject: str, quantity: str) -> Figure | None:
    return figures.get(Key(section, condition, subject, quantity))


def _ratio(section: str, condition: str, quantity: str, other: str) -> Callable[[Figures], Values | None]:
    """Ours against another's, round by round."""

    def values(figures: Figures) -> Values | None:
        mine = _figure(figures, section, condition, names.OURS, quantity)
        theirs = _figure(figures, section, condition, other, quantity)
        return ratios(mine, theirs) if mine and theirs else None

    return values


def _against_fastest(batch: int, others: tuple[str, ...]) -> Callable[[Figures], Values | None]:
    """Our evaluation's time against that of the fastest of others, those of them that were measured."""

    def values(figures: Figures) -> Values | None:
        condition = names.batch(batch)
        mine = _figure(figures, names.KERNELS, condition, names.OURS, names.MILLISECONDS)
        theirs = [_figure(figures, names.KERNELS, condition, other, names.MILLISECONDS) for other in others]
        there = [figure for figure in theirs if figure is not None]
        return ratios(mine, least(there)) if mine and there else None

    return values


def _share_of_convolutions(figures: Figures) -> Values | None:
    condition = names.batch(max(names.TABLE_BATCHES))
    mine = _figure(figures, names.KERNELS, condition, names.OURS, names.MILLISECONDS)
    alone = _figure(figures, names.KERNELS, condition, names.CONVOLUTIONS, names.MILLISECONDS)
    return ratios(alone, mine) if mine and alone else None


def _with_listeners(figures: Figures) -> Values | None:
    followed = _figure(figures, names.LISTENERS, names.SIXTEEN_LISTENERS, names.OURS, names.EVALUATIONS)
    quiet = _figure(figures, names.LISTENERS, names.NO_LISTENERS, names.OURS, names.EVALUATIONS)
    return ratios(followed, quiet) if followed and quiet else None


def _ready(condition: str) -> Callable[[Figures], Values | None]:
    def values(figures: Figures) -> Values | None:
        figure = _figure(figures, names.READINESS, condition, names.OURS, names.READY)
        return figure.samples if figure else None

    return values


def _growth(figures: Figures) -> Values | None:
    found = [figure for key, figure in figures.items() if (key.section, key.quantity) == (names.MEMORY, names.GROWTH)]
    return found[0].samples if found else None


_LOADS, _EVALUATIONS = names.LOADS, names.EVALUATIONS
_EVERY_PATH = (*names.EAGER, names.COMPILED)

ROWS = (
    Row(
        "evaluations/s, three step counts, against (b)", 1.5, "×", True,
        _ratio(_LOADS, THREE_STEP_COUNTS.name, _EVALUATIONS, names.BATCHING),
    ),
    Row(
        "evaluations/s, three step counts, against (a)", 5.0, "×", True,
        _ratio(_LOADS, THREE_STEP_COUNTS.name, _EVALUATIONS, names.LOCKED),
    ),
    Row(
        "evaluations/s, real traffic, against (b)", 2.5, "×", True,
        _ratio(_LOADS, REAL_TRAFFIC.name, _EVALUATIONS, names.BATCHING),
    ),
    Row(
        "median latency of a 10-step request, three step counts, against (b)", 0.35, "×", False,
        _ratio(_LOADS, THREE_STEP_COUNTS.name, names.SHORT_LATENCY, names.BATCHING),
    ),
    Row(
        "one client, one image of 20 steps: time against (b) with one client", 0.7, "×", False,
        _ratio(_LOADS, names.ONE_CLIENT, names.LATENCY, names.BATCHING),
    ),
    *(
        Row(
            f"served evaluations/s against our own bare engine loop at the same batch, {load.name}", 0.92, "×", True,
            _ratio(_LOADS, load.name, _EVALUATIONS, names.ENGINE),
            because="both cores are busy all the time (98 %), and front end, publisher, store, clients and taker take "
            "an eighth of them (0.09, 0.06, 0.05, 0.03 and 0.03 of a core), which the network's threads do not have",
        )
        for load in (THREE_STEP_COUNTS, REAL_TRAFFIC)
    ),
    Row(
        "our U-Net evaluation, time against diffusers' in its faster memory format, batch 1", 0.65, "×", False,
        _against_fastest(1, names.EAGER),
    ),
    Row("the same, batch 16", 0.75, "×", False, _against_fastest(16, names.EAGER)),
    Row(
        "share of the evaluation at batch 16 that its convolutions alone need", 0.65, "", True,
        _share_of_convolutions,
    ),
    Row(
        "16 listeners, a frame every step: evaluations/s against none", 0.95, "×", True, _with_listeners,
        because="the sixteen readers share the two cores, and take 7 % of one themselves; the front end takes 9 % more "
        "than without them, the publisher, which makes a PNG of every image in every turn, 5 %",
    ),
    *(
        Row(
            f"batch-invariant path, time against the fastest path there is, batch {batch}", 1.1, "×", False,
            _against_fastest(batch, _EVERY_PATH),
        )
        for batch in names.TABLE_BATCHES
    ),
    Row("`make serve` to ready after the installation, the first time", 20.0, " s", False, _ready(names.FIRST)),
    Row("the same, later", 8.0, " s", False, _ready(names.LATER)),
    Row("growth of a worker's memory over 10,000 jobs, after the first 500", 2.0, " %", False, _growth),
)  # fmt: skip
