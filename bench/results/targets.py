"""The targets of the benchmark, and how each is computed from the samples. Only the limits are written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench.load.workloads import REAL_TRAFFIC, THREE_STEP_COUNTS
from bench.results import sample_names as names
from bench.results.samples import SampleKey, SampleSeries, SampleTable, lowest, ratios

Values = tuple[float, ...]
Compute = Callable[[SampleTable], Values | None]


@dataclass(frozen=True)
class Target:
    """A quantity, its limit, and how to compute one value per round; the median of the rounds counts.

    values: returns None if something it needs is not measured.
    reason: why the target is missed, if known; shown only then.
    """

    description: str
    limit: float
    unit: str
    at_least: bool
    values: Compute
    reason: str = ""

    def is_met(self, values: Values) -> bool:
        return median(values) >= self.limit if self.at_least else median(values) <= self.limit


def _ratio(section: str, condition: str, quantity: str, other: str) -> Compute:
    """denoised relative to another subject, round by round."""

    def values(table: SampleTable) -> Values | None:
        ours = table.get(SampleKey(section, condition, names.DENOISED, quantity))
        theirs = table.get(SampleKey(section, condition, other, quantity))
        return ratios(ours, theirs) if ours and theirs else None

    return values


def _evaluation_time(table: SampleTable, batch: int, subject: str, section: str = names.KERNELS) -> SampleSeries | None:
    return table.get(SampleKey(section, names.batch(batch), subject, names.MILLISECONDS))


def _relative_to_fastest(batch: int, others: tuple[str, ...], section: str = names.KERNELS) -> Compute:
    """The time of our evaluation relative to that of the fastest of the others that were measured."""

    def values(table: SampleTable) -> Values | None:
        ours = _evaluation_time(table, batch, names.DENOISED, section)
        theirs = [each for other in others if (each := _evaluation_time(table, batch, other, section)) is not None]
        return ratios(ours, lowest(theirs)) if ours and theirs else None

    return values


def _convolution_share(table: SampleTable) -> Values | None:
    batch = max(names.TABLE_BATCHES)
    ours = _evaluation_time(table, batch, names.DENOISED)
    convolutions = _evaluation_time(table, batch, names.CONVOLUTIONS)
    return ratios(convolutions, ours) if ours and convolutions else None


def _with_listeners(table: SampleTable) -> Values | None:
    with_listeners, without = (
        table.get(SampleKey(names.LISTENERS, condition, names.DENOISED, names.EVALUATIONS))
        for condition in (names.SIXTEEN_LISTENERS, names.NO_LISTENERS)
    )
    return ratios(with_listeners, without) if with_listeners and without else None


def _seconds_to_ready(condition: str) -> Compute:
    def values(table: SampleTable) -> Values | None:
        series = table.get(SampleKey(names.READINESS, condition, names.DENOISED, names.READY))
        return series.samples if series else None

    return values


def _text(condition: str, quantity: str) -> Compute:
    """denoised's own samples with the text-to-image model."""

    def values(table: SampleTable) -> Values | None:
        series = table.get(SampleKey(names.TEXT_LOADS, condition, names.DENOISED, quantity))
        return series.samples if series else None

    return values


def _watched_turn(images: int) -> Compute:
    """The sampler that takes the most CPU time in a turn."""

    def values(table: SampleTable) -> Values | None:
        condition, quantity = names.batch(images), names.WATCHED_TURN
        found = [
            series
            for key, series in table.items()
            if (key.section, key.condition, key.quantity) == (names.TURNS, condition, quantity)
        ]
        return max(found, key=lambda series: series.median).samples if found else None

    return values


def _memory_growth(table: SampleTable) -> Values | None:
    found = [series for key, series in table.items() if (key.section, key.quantity) == (names.MEMORY, names.GROWTH)]
    return found[0].samples if found else None


_LOADS, _EVALUATIONS = names.LOADS, names.EVALUATIONS
_EVERY_PATH = (*names.EAGER, names.COMPILED)

TURN_LIMITS = (
    (1, 0.1, ""),
    (16, 0.15, ""),
    (64, 0.3, "drawing the noise of 64 images takes .4 ms, and applying plans with four registers .2 ms"),
)

TARGETS = (
    Target(
        "evaluations/s relative to (b), three step counts", 1.5, "×", True,
        _ratio(_LOADS, THREE_STEP_COUNTS.name, _EVALUATIONS, names.BATCHING),
    ),
    Target(
        "evaluations/s relative to (a), three step counts", 5.0, "×", True,
        _ratio(_LOADS, THREE_STEP_COUNTS.name, _EVALUATIONS, names.LOCKED),
    ),
    Target(
        "evaluations/s relative to (b), real traffic", 2.5, "×", True,
        _ratio(_LOADS, REAL_TRAFFIC.name, _EVALUATIONS, names.BATCHING),
    ),
    Target(
        "median latency of a 10-step request relative to (b), three step counts", 0.35, "×", False,
        _ratio(_LOADS, THREE_STEP_COUNTS.name, names.SHORT_LATENCY, names.BATCHING),
    ),
    Target(
        "latency relative to (b) with one client, one image of 20 steps", 0.7, "×", False,
        _ratio(_LOADS, names.ONE_CLIENT, names.LATENCY, names.BATCHING),
    ),
    *(
        Target(
            f"evaluations/s relative to denoised's engine alone at the same batch, {workload.name}", 0.92, "×", True,
            _ratio(_LOADS, workload.name, _EVALUATIONS, names.ENGINE),
            reason="both cores are fully busy (98 %), and the API, publisher, store, clients and job fetcher use an "
            "eighth of them (0.09, 0.06, 0.05, 0.03 and 0.03 of a core), which the network's threads then lack",
        )
        for workload in (THREE_STEP_COUNTS, REAL_TRAFFIC)
    ),
    Target(
        "time of denoised's U-Net evaluation relative to diffusers' in its faster memory format, batch 1", 0.65, "×",
        False, _relative_to_fastest(1, names.EAGER),
    ),
    Target("the same, batch 16", 0.75, "×", False, _relative_to_fastest(16, names.EAGER)),
    Target(
        "time of the convolutions alone relative to the whole evaluation, batch 16", 0.65, "", True,
        _convolution_share,
    ),
    Target(
        "evaluations/s with 16 listeners, a frame every step, relative to none", 0.95, "×", True, _with_listeners,
        reason="the sixteen readers share the two cores and use 7 % of one; the API uses 9 % more than without them, "
        "and the publisher, which encodes a PNG of every image in every turn, 5 %",
    ),
    *(
        Target(
            f"time of the batch-invariant path relative to the fastest path, batch {batch}", 1.1, "×", False,
            _relative_to_fastest(batch, _EVERY_PATH),
        )
        for batch in names.TABLE_BATCHES
    ),
    Target("`make serve` until ready, first start after the installation", 20.0, " s", False,
           _seconds_to_ready(names.FIRST_START)),
    Target("the same, later starts", 8.0, " s", False, _seconds_to_ready(names.LATER_START)),
    Target("growth of a worker's memory over 10,000 jobs, after the first 500", 2.0, " %", False, _memory_growth),
    *(
        Target(
            f"CPU time of a turn without the network, the slowest sampler, frames watched, batch {images}", limit,
            " ms", False, _watched_turn(images),
            reason=reason,
        )
        for images, limit, reason in TURN_LIMITS
    ),
    Target(
        "text to image: evaluations/s relative to (b), three step counts", 1.8, "×", True,
        _ratio(names.TEXT_LOADS, THREE_STEP_COUNTS.name, _EVALUATIONS, names.BATCHING),
    ),
    Target(
        "text to image: evaluations/s relative to (b), real traffic", 3.5, "×", True,
        _ratio(names.TEXT_LOADS, REAL_TRAFFIC.name, _EVALUATIONS, names.BATCHING),
    ),
    Target(
        "text to image: latency relative to (b) with one client, one picture of 25 guided steps", 0.6, "×", False,
        _ratio(names.TEXT_LOADS, names.ONE_GUIDED, names.LATENCY, names.BATCHING),
    ),
    Target("text to image: the same latency", 1.5, " s", False, _text(names.ONE_GUIDED, names.LATENCY)),
    Target(
        "text to image: pictures/s of 25 guided steps, 16 clients", 3.0, "", True,
        _text(names.GUIDED_LOAD, names.PICTURES),
    ),
    *(
        Target(
            f"text to image: time of the U-Net relative to diffusers' in its faster memory format, batch {batch}",
            0.7, "×", False, _relative_to_fastest(batch, names.EAGER, names.TEXT_KERNELS),
        )
        for batch in names.TABLE_BATCHES
    ),
    Target("text to image: `denoised serve` until ready", 10.0, " s", False, _text(names.WORKER_START, names.READY)),
)  # fmt: skip
