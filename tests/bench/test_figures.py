"""Figures on disk, and what is said of them on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import names
from bench.errors import BenchError
from bench.figures import Figure, Figures, Key, Samples, ratios, read_figures, replace_section, write_figures
from bench.load import REAL_TRAFFIC, THREE_STEP_COUNTS
from bench.machine import Machine, this_machine
from bench.plots import curves, write_plots
from bench.report import BATCH_PLOT, CLIENTS_PLOT, SIZE_PLOT, document, spread
from bench.rows import ROWS

MACHINE = Machine("A processor, with a comma", 2, "x86_64 (AVX2)", "2.13.0")


def figure(*samples: float) -> Figure:
    return Figure(samples, "2026-11-26", MACHINE)


def just_at_the_bars() -> Figures:
    """Figures with which every row is at its bar, but for a last bit."""
    rate, short, ms = names.EVALUATIONS, names.SHORT_LATENCY, names.MILLISECONDS
    three, real = THREE_STEP_COUNTS.name, REAL_TRAFFIC.name
    lines: list[tuple[str, str, str, str, float]] = [
        (names.LOADS, three, names.OURS, rate, 300),
        (names.LOADS, three, names.BATCHING, rate, 200),
        (names.LOADS, three, names.LOCKED, rate, 60),
        (names.LOADS, three, names.ENGINE, rate, 300 / 0.92),
        (names.LOADS, three, names.OURS, short, 35),
        (names.LOADS, three, names.BATCHING, short, 100),
        (names.LOADS, real, names.OURS, rate, 500),
        (names.LOADS, real, names.BATCHING, rate, 200),
        (names.LOADS, real, names.ENGINE, rate, 500 / 0.92),
        (names.LOADS, names.ONE_CLIENT, names.OURS, names.LATENCY, 70),
        (names.LOADS, names.ONE_CLIENT, names.BATCHING, names.LATENCY, 100),
        (names.KERNELS, "batch 1", names.OURS, ms, 65),
        (names.KERNELS, "batch 1", names.CONTIGUOUS, ms, 100),
        (names.KERNELS, "batch 1", names.CHANNELS_LAST, ms, 101),
        (names.KERNELS, "batch 1", names.COMPILED, ms, 65 / 1.1),
        (names.KERNELS, "batch 16", names.OURS, ms, 75),
        (names.KERNELS, "batch 16", names.CONTIGUOUS, ms, 110),
        (names.KERNELS, "batch 16", names.CHANNELS_LAST, ms, 100),
        (names.KERNELS, "batch 16", names.COMPILED, ms, 75 / 1.1),
        (names.KERNELS, "batch 16", names.CONVOLUTIONS, ms, 0.65 * 75),
        (names.LISTENERS, names.SIXTEEN_LISTENERS, names.OURS, rate, 95),
        (names.LISTENERS, names.NO_LISTENERS, names.OURS, rate, 100),
        (names.MEMORY, "10,000 jobs", names.OURS, names.GROWTH, 2),
        (names.READINESS, names.FIRST, names.OURS, names.READY, 20),
        (names.READINESS, names.LATER, names.OURS, names.READY, 8),
    ]
    return {Key(section, *what): figure(value) for section, *what, value in lines}


def test_figures_come_back_from_the_file_as_they_were_written(tmp_path: Path) -> None:
    figures = {
        Key("loads", "real traffic", "(b) LitServe", "evaluations/s"): figure(187.5, 190.25, 180.125),
        Key("clients", "16", "denoised", "median latency, s"): Figure((0.5,), "2026-11-27", this_machine()),
    }
    write_figures(tmp_path / "f.csv", figures)
    assert read_figures(tmp_path / "f.csv") == figures


def test_there_are_no_figures_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_figures(tmp_path / "f.csv") == {}


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
        read_figures(path)


def test_a_section_measured_again_replaces_its_own_figures_only() -> None:
    one, other, elsewhere = (Key(*what, "s", "q") for what in (("loads", "a"), ("loads", "b"), ("ready", "a")))
    old = {one: figure(1), other: figure(2), elsewhere: figure(3)}
    assert replace_section(old, "loads", {one: figure(4)}) == {elsewhere: figure(3), one: figure(4)}


def test_samples_are_kept_in_the_order_of_the_rounds() -> None:
    found = Samples()
    for value in (3.0, 1.0, 2.0):
        found.add(16, "denoised", "evaluations/s", value)
    figures = found.figures("clients", "2026-11-26", MACHINE)
    assert figures == {Key("clients", "16", "denoised", "evaluations/s"): figure(3, 1, 2)}


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios(figure(10, 30, 20), figure(5, 10, 5)) == (2, 3, 4)


def test_every_row_is_reached_at_its_bar_and_has_a_value() -> None:
    figures = just_at_the_bars()
    for row in ROWS:
        values = row.values(figures)
        assert values == (pytest.approx(row.bar),), row.what
        assert row.reached((row.bar,)), row.what


def test_a_row_beyond_its_bar_is_reached_and_short_of_it_is_not() -> None:
    for row in ROWS:
        better, worse = (1.01, 0.99) if row.at_least else (0.99, 1.01)
        assert row.reached((row.bar * better,)), row.what
        assert not row.reached((row.bar * worse,)), row.what


def test_the_median_of_the_rounds_decides() -> None:
    row = ROWS[0]
    assert row.at_least
    assert row.reached((0.1, row.bar, row.bar))
    assert not row.reached((0.1, 0.2, 10 * row.bar))


def test_the_fastest_other_path_is_the_one_that_counts() -> None:
    figures = just_at_the_bars()
    figures[Key(names.KERNELS, "batch 16", names.CHANNELS_LAST, names.MILLISECONDS)] = figure(50)
    values = {row.what: row.values(figures) for row in ROWS if "batch 16" in row.what}
    assert values["the same, batch 16"] == (1.5,)
    assert values["batch-invariant path, time against the fastest path there is, batch 16"] == (1.5,)


def test_the_page_says_of_every_bar_whether_it_is_reached() -> None:
    figures = just_at_the_bars()
    figures[Key(names.LISTENERS, names.SIXTEEN_LISTENERS, names.OURS, names.EVALUATIONS)] = figure(90)
    page = document(figures)
    lines = [line for line in page.splitlines() if line.endswith(("reached |", "reached** |"))]
    assert len(lines) == len(ROWS)
    (listeners,) = [line for line in lines if "listeners" in line]
    assert listeners.endswith(" evaluations/s against none | 0.9× | ≥ 0.95× | **not reached** |")
    assert "A processor, with a comma, 2 cores" in page


def test_the_page_without_figures_says_so() -> None:
    page = document({})
    assert page.count("not measured yet") == len(ROWS)
    assert "Nothing is measured yet." in page


def test_a_spread_shows_the_median_and_the_ends() -> None:
    assert spread((1.55, 1.7, 1.62), "×") == "1.62× (1.55–1.7)"
    assert spread((187.4, 203.9, 190.1)) == "190 (187–204)"
    assert spread((4.6,), " s") == "4.6 s"


def test_curves_take_the_numbers_of_their_conditions_only() -> None:
    figures = {
        Key("shapes", "batch 16", "s", "ms"): figure(3),
        Key("shapes", "batch 4", "s", "ms"): figure(2),
        Key("shapes", "28 pixels", "s", "ms"): figure(1),
        Key("other", "batch 4", "s", "ms"): figure(9),
    }
    assert curves(figures, "shapes", "ms", before="batch ") == {"s": [(4, figure(2)), (16, figure(3))]}
    assert curves(figures, "shapes", "ms", after=" pixels") == {"s": [(28, figure(1))]}


def test_the_plots_are_small_files_with_or_without_figures(tmp_path: Path) -> None:
    curve = {
        Key("clients", str(n), subject, quantity): figure(n, 2 * n, 3 * n)
        for n in (1, 16)
        for subject in (names.OURS, names.BATCHING)
        for quantity in (names.EVALUATIONS, names.LATENCY)
    }
    for figures in ({}, curve):
        write_plots(tmp_path, figures)
        for path in (CLIENTS_PLOT, BATCH_PLOT, SIZE_PLOT):
            assert 2_000 < (tmp_path / path).stat().st_size < 100_000


def test_the_machine_is_named() -> None:
    machine = this_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.torch.startswith("2.")
