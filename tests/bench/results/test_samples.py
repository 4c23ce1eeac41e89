"""Samples on disk, targets, and the page and plots generated from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.load.workloads import REAL_TRAFFIC, THREE_STEP_COUNTS
from bench.machine import Machine, this_machine
from bench.results import sample_names as names
from bench.results.plots import curves, write_plots
from bench.results.report import BATCH_PLOT, CLIENTS_PLOT, SIZE_PLOT, format_range, render_page
from bench.results.samples import (
    SampleKey,
    SampleRecorder,
    SampleSeries,
    SampleTable,
    ratios,
    read_samples,
    replace_section,
    write_samples,
)
from bench.results.targets import TARGETS, TURN_LIMITS

MACHINE = Machine("A processor, with a comma", 2, "x86_64 (AVX2)", "2.13.0")


def series(*samples: float) -> SampleSeries:
    return SampleSeries(samples, "2026-11-26", MACHINE)


def exactly_on_target() -> SampleTable:
    """Samples with which every target is met exactly, up to a rounding error."""
    rate, short, ms = names.EVALUATIONS, names.SHORT_LATENCY, names.MILLISECONDS
    three, real = THREE_STEP_COUNTS.name, REAL_TRAFFIC.name
    lines: list[tuple[str, str, str, str, float]] = [
        (names.LOADS, three, names.DENOISED, rate, 300),
        (names.LOADS, three, names.BATCHING, rate, 200),
        (names.LOADS, three, names.LOCKED, rate, 60),
        (names.LOADS, three, names.ENGINE, rate, 300 / 0.92),
        (names.LOADS, three, names.DENOISED, short, 35),
        (names.LOADS, three, names.BATCHING, short, 100),
        (names.LOADS, real, names.DENOISED, rate, 500),
        (names.LOADS, real, names.BATCHING, rate, 200),
        (names.LOADS, real, names.ENGINE, rate, 500 / 0.92),
        (names.LOADS, names.ONE_CLIENT, names.DENOISED, names.LATENCY, 70),
        (names.LOADS, names.ONE_CLIENT, names.BATCHING, names.LATENCY, 100),
        (names.KERNELS, "batch 1", names.DENOISED, ms, 65),
        (names.KERNELS, "batch 1", names.CONTIGUOUS, ms, 100),
        (names.KERNELS, "batch 1", names.CHANNELS_LAST, ms, 101),
        (names.KERNELS, "batch 1", names.COMPILED, ms, 65 / 1.1),
        (names.KERNELS, "batch 16", names.DENOISED, ms, 75),
        (names.KERNELS, "batch 16", names.CONTIGUOUS, ms, 110),
        (names.KERNELS, "batch 16", names.CHANNELS_LAST, ms, 100),
        (names.KERNELS, "batch 16", names.COMPILED, ms, 75 / 1.1),
        (names.KERNELS, "batch 16", names.CONVOLUTIONS, ms, 0.65 * 75),
        (names.LISTENERS, names.SIXTEEN_LISTENERS, names.DENOISED, rate, 95),
        (names.LISTENERS, names.NO_LISTENERS, names.DENOISED, rate, 100),
        (names.MEMORY, "10,000 jobs", names.DENOISED, names.GROWTH, 2),
        (names.READINESS, names.FIRST_START, names.DENOISED, names.READY, 20),
        (names.READINESS, names.LATER_START, names.DENOISED, names.READY, 8),
        *((names.TURNS, names.batch(images), "ddim", names.WATCHED_TURN, limit) for images, limit, _ in TURN_LIMITS),
        (names.TEXT_LOADS, three, names.DENOISED, rate, 180),
        (names.TEXT_LOADS, three, names.BATCHING, rate, 100),
        (names.TEXT_LOADS, real, names.DENOISED, rate, 350),
        (names.TEXT_LOADS, real, names.BATCHING, rate, 100),
        (names.TEXT_LOADS, names.ONE_GUIDED, names.DENOISED, names.LATENCY, 1.5),
        (names.TEXT_LOADS, names.ONE_GUIDED, names.BATCHING, names.LATENCY, 2.5),
        (names.TEXT_LOADS, names.GUIDED_LOAD, names.DENOISED, names.PICTURES, 3),
        (names.TEXT_LOADS, names.WORKER_START, names.DENOISED, names.READY, 10),
        *(
            (names.TEXT_KERNELS, names.batch(batch), subject, ms, value)
            for batch in names.TABLE_BATCHES
            for subject, value in ((names.DENOISED, 70), (names.CONTIGUOUS, 120), (names.CHANNELS_LAST, 100))
        ),
    ]
    return {SampleKey(section, *what): series(value) for section, *what, value in lines}


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    table = {
        SampleKey("loads", "real traffic", "(b) LitServe", "evaluations/s"): series(187.5, 190.25, 180.125),
        SampleKey("clients", "16", "denoised", "median latency, s"): SampleSeries((0.5,), "2026-11-27", this_machine()),
    }
    write_samples(tmp_path / "f.csv", table)
    assert read_samples(tmp_path / "f.csv") == table


def test_without_a_file_there_are_no_samples(tmp_path: Path) -> None:
    assert read_samples(tmp_path / "f.csv") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("section,samples\n", "columns are not section, condition"),
        ("{header}\nloads,c,s,q,1 two,2026-11-26,cpu,2,isa,2.13\n", "line 2: could not convert"),
        ("{header}\nloads,c,s,q,,2026-11-26,cpu,2,isa,2.13\n", "line 2: there are no samples"),
        ("{header}\nloads,c\n", "line 2: "),
    ],
)
def test_a_broken_file_is_refused_with_the_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "f.csv"
    header = "section,condition,subject,quantity,samples,date,cpu,cores,isa,torch"
    path.write_text(text.format(header=header))
    with pytest.raises(BenchError, match=words):
        read_samples(path)


def test_measuring_a_section_again_replaces_only_its_own_samples() -> None:
    one, other, elsewhere = (SampleKey(*what, "s", "q") for what in (("loads", "a"), ("loads", "b"), ("ready", "a")))
    old = {one: series(1), other: series(2), elsewhere: series(3)}
    assert replace_section(old, "loads", {one: series(4)}) == {elsewhere: series(3), one: series(4)}


def test_samples_are_kept_in_the_order_of_the_rounds() -> None:
    recorder = SampleRecorder()
    for value in (3.0, 1.0, 2.0):
        recorder.add(16, "denoised", "evaluations/s", value)
    table = recorder.table("clients", "2026-11-26", MACHINE)
    assert table == {SampleKey("clients", "16", "denoised", "evaluations/s"): series(3, 1, 2)}


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios(series(10, 30, 20), series(5, 10, 5)) == (2, 3, 4)


def test_every_target_is_met_at_its_limit_and_has_a_value() -> None:
    table = exactly_on_target()
    for target in TARGETS:
        values = target.values(table)
        assert values == (pytest.approx(target.limit),), target.description
        assert target.is_met((target.limit,)), target.description


def test_a_value_beyond_the_limit_meets_the_target_and_one_short_of_it_does_not() -> None:
    for target in TARGETS:
        better, worse = (1.01, 0.99) if target.at_least else (0.99, 1.01)
        assert target.is_met((target.limit * better,)), target.description
        assert not target.is_met((target.limit * worse,)), target.description


def test_the_median_of_the_rounds_decides() -> None:
    target = TARGETS[0]
    assert target.at_least
    assert target.is_met((0.1, target.limit, target.limit))
    assert not target.is_met((0.1, 0.2, 10 * target.limit))


def test_the_fastest_other_path_counts() -> None:
    table = exactly_on_target()
    table[SampleKey(names.KERNELS, "batch 16", names.CHANNELS_LAST, names.MILLISECONDS)] = series(50)
    values = {target.description: target.values(table) for target in TARGETS if "batch 16" in target.description}
    assert values["the same, batch 16"] == (1.5,)
    assert values["time of the batch-invariant path relative to the fastest path, batch 16"] == (1.5,)


def test_the_page_says_of_every_target_whether_it_is_met() -> None:
    table = exactly_on_target()
    table[SampleKey(names.LISTENERS, names.SIXTEEN_LISTENERS, names.DENOISED, names.EVALUATIONS)] = series(90)
    page = render_page(table)
    lines = [line for line in page.splitlines() if line.endswith(("| met |", "not met** |"))]
    assert len(lines) == len(TARGETS)
    (listeners,) = [line for line in lines if "listeners" in line]
    assert listeners.endswith(" a frame every step, relative to none | 0.9× | ≥ 0.95× | **not met** |")
    assert "A processor, with a comma, 2 cores" in page


def test_the_page_without_samples_says_so() -> None:
    page = render_page({})
    assert page.count("not measured yet") == len(TARGETS)
    assert "Nothing is measured yet." in page


def test_a_range_shows_the_median_and_the_ends() -> None:
    assert format_range((1.55, 1.7, 1.62), "×") == "1.62× (1.55–1.7)"
    assert format_range((187.4, 203.9, 190.1)) == "190 (187–204)"
    assert format_range((4.6,), " s") == "4.6 s"


def test_curves_contain_only_conditions_that_are_numbers() -> None:
    table = {
        SampleKey("shapes", "batch 16", "s", "ms"): series(3),
        SampleKey("shapes", "batch 4", "s", "ms"): series(2),
        SampleKey("shapes", "28 pixels", "s", "ms"): series(1),
        SampleKey("other", "batch 4", "s", "ms"): series(9),
    }
    assert curves(table, "shapes", "ms", prefix="batch ") == {"s": [(4, series(2)), (16, series(3))]}
    assert curves(table, "shapes", "ms", suffix=" pixels") == {"s": [(28, series(1))]}


def test_the_plots_are_small_files_with_or_without_samples(tmp_path: Path) -> None:
    curve = {
        SampleKey("clients", str(n), subject, quantity): series(n, 2 * n, 3 * n)
        for n in (1, 16)
        for subject in (names.DENOISED, names.BATCHING)
        for quantity in (names.EVALUATIONS, names.LATENCY)
    }
    for table in ({}, curve):
        write_plots(tmp_path, table)
        for path in (CLIENTS_PLOT, BATCH_PLOT, SIZE_PLOT):
            assert 2_000 < (tmp_path / path).stat().st_size < 100_000


def test_the_machine_is_named() -> None:
    machine = this_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.torch.startswith("2.")
