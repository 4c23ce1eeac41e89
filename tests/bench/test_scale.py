"""The measurements of scale on small sizes, and the page that is computed from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from bench.machine import this_machine
from bench.results.samples import SampleKey, SampleRecorder, SampleTable, read_samples
from bench.scale import measurements, scale_names
from bench.scale.__main__ import DOCS, _choose
from bench.scale.fleet import Workload, resources
from bench.scale.page import DOCUMENT, TABLE, render_scale_page
from bench.scale.scale_run import QUICK, ScaleRun, StoreCounters


@pytest.fixture
def run(tmp_path: Path) -> Iterator[ScaleRun]:
    size = replace(QUICK, jobs=2, steps=(3, 6), waiting=(0, 30), posts=3, workers=(2,), worker_jobs=6, sockets=5)
    with ExitStack() as stack:
        yield ScaleRun(tmp_path, size, lambda line: None, stack)


def table(**costs: tuple[float, ...]) -> SampleTable:
    """Rows of operations from values in the order of `OPERATION_QUANTITIES`; a waiting job takes 5,000 bytes."""
    conditions = {"job": scale_names.JOB, "step": scale_names.STEP, "frame": scale_names.FRAME}
    conditions["idle"] = scale_names.IDLE_WORKER
    recorder = SampleRecorder()
    for name, values in costs.items():
        for quantity, value in zip(scale_names.OPERATION_QUANTITIES, values, strict=True):
            recorder.add(conditions[name], scale_names.STORE, quantity, value)
    recorder.add(scale_names.JOB, scale_names.STORE, scale_names.MEMORY, 5000)
    return recorder.table(scale_names.OPERATIONS, "2026-11-30", this_machine())


def test_counters_of_a_period_are_divided_into_its_parts() -> None:
    before, after = StoreCounters(1, 2, 3, 4, 5), StoreCounters(11, 22, 33, 44, 55)
    assert after.since(before, 10) == StoreCounters(1, 2, 3, 4, 5)
    assert after.less(before, 2) == StoreCounters(9, 18, 27, 36, 45)
    assert before.quantities()[scale_names.CPU] == 5e6


@pytest.mark.slow  # it subtracts measurements, which the noise of a busy machine can exceed
def test_every_section_is_measured(run: ScaleRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "IDLE_SECONDS", 0.3)
    recorders = {name: SampleRecorder() for name in measurements.SECTIONS}
    for name, measure in measurements.SECTIONS.items():
        measure(run, recorders[name])
    operations = {(key[0], key[2]): values for key, values in recorders[scale_names.OPERATIONS].values.items()}
    for quantity in (scale_names.COMMANDS, scale_names.ROUND_TRIPS, scale_names.BYTES_IN):
        assert operations[scale_names.JOB, quantity][0] > 0
    assert operations[scale_names.STEP, scale_names.COMMANDS][0] > 1
    assert operations[scale_names.FRAME, scale_names.BYTES_IN][0] > 50
    assert len(recorders[scale_names.ACCEPTANCE].values) == 2 * 3
    assert recorders[scale_names.WORKERS].values["2 workers", scale_names.STORE, scale_names.JOBS_PER_SECOND][0] > 0
    assert list(recorders[scale_names.SOCKETS].values) == [
        ("5 sockets", scale_names.FRONT_END, scale_names.BYTES_PER_SOCKET)
    ]


def test_the_needs_of_a_fleet_are_sums_of_what_was_measured() -> None:
    measured = table(
        job=(50, 20, 4000, 1000, 1000), step=(5, 1, 500, 10, 100), frame=(1, 0, 300, 0, 50), idle=(9, 4, 90, 90, 40)
    )
    load = Workload(
        jobs_per_second=2, steps=10, watched=0.5, frames=4, frame_bytes=1e4, picture_bytes=1e5, kept_seconds=100
    )
    found = {each.name: each for each in resources(measured, load)}
    # Of each job: 1,000 µs, ten steps of 100 µs and two frames of 50 µs on average; and 40 µs of the worker.
    assert found["processor"].per_gpu == pytest.approx((2 * (1000 + 10 * 100 + 2 * 50) + 40) / 1e6)
    assert found["processor"].stores(1000) == 5  # 4.24 cores
    files = 2 * (1e5 + 2 * 1e4)
    messages = 2 * (4000 + 1000 + 10 * 510 + 2 * 300) + 180
    assert found["network"].per_gpu == pytest.approx((messages + 2 * files) / 1e9)
    assert found["memory for results"].per_gpu == pytest.approx(100 * files / 1e9)
    assert found["memory for waiting jobs"].per_gpu == pytest.approx(5000 * 2 * 60 / 1e9)
    assert [each.gpus for each in resources(measured, load)] == sorted(each.gpus for each in found.values())


def test_the_page_says_what_is_not_measured_yet() -> None:
    page = render_scale_page({})
    assert "## What a fleet needs\n\nNot measured yet." in page
    assert "| 10000 waiting jobs | – | – | – |" in page


def test_only_sections_without_rows_are_measured() -> None:
    measured = table(job=(1, 1, 1, 1, 1))
    assert scale_names.OPERATIONS not in _choose("", measured, again=False)
    assert _choose("", measured, again=True) == list(measurements.SECTIONS)
    assert _choose("operations", measured, again=False) == ["operations"]


def test_the_page_in_the_repository_is_that_of_its_rows() -> None:
    measured = read_samples(DOCS / TABLE)
    assert SampleKey(scale_names.OPERATIONS, scale_names.JOB, scale_names.STORE, scale_names.COMMANDS) in measured
    assert (DOCS / DOCUMENT).read_text(encoding="utf-8") == render_scale_page(measured)
