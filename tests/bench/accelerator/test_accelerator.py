"""A run on an accelerator: failing subjects are omitted, the time limit holds, and the page shows the samples."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.accelerator.__main__ import cli
from bench.accelerator.accelerator_run import AcceleratorRun
from bench.accelerator.loads import measure_in_turns
from bench.accelerator.page import render_accelerator_page
from bench.benchmark_run import BenchmarkRun
from bench.errors import BenchError
from bench.load.servers import EvaluationOptions
from bench.machine import Machine
from bench.results import sample_names as names
from bench.results.samples import SampleKey, SampleRecorder, SampleSeries, read_samples
from bench.run_length import RunLength

MACHINE = Machine("A card with a processor", 16, "x86_64", "2.13.0")


@dataclass
class CountedSystem:
    """Records the number of each round; fails in one of them."""

    name: str
    fails: int | None = None

    def measure(self, section: AcceleratorRun, number: int) -> None:
        if number == self.fails:
            raise BenchError(f"{self.name} is\nexhausted")
        section.recorder.add("three step counts", self.name, names.EVALUATIONS, number)


@dataclass
class Output:
    lines: list[str] = field(default_factory=list)
    saves: int = 0

    def save(self) -> None:
        self.saves += 1


MakeSection = Callable[[float], tuple[AcceleratorRun, Output]]


@pytest.fixture
def make_section(tmp_path: Path) -> MakeSection:
    def make(deadline: float) -> tuple[AcceleratorRun, Output]:
        output = Output()
        run = BenchmarkRun(tmp_path, RunLength(rounds=3), output.lines.append, ExitStack())
        return AcceleratorRun(run, SampleRecorder(), "cpu", ("float32",), True, output.save, deadline), output

    return make


def test_a_failing_subject_is_logged_and_omitted_and_the_others_continue(make_section: MakeSection) -> None:
    section, output = make_section(math.inf)
    measure_in_turns(section, [CountedSystem("weak", fails=1), CountedSystem("strong")])
    found = {
        name: values for (_, name, quantity), values in section.recorder.values.items() if quantity == names.EVALUATIONS
    }
    assert found == {"weak": [0], "strong": [0, 1, 2]}
    assert [line for line in output.lines if "failed" in line] == ["failed: weak: BenchError: weak is exhausted"]
    assert output.saves == 5  # after every turn


def test_nothing_starts_after_the_deadline(make_section: MakeSection) -> None:
    section, output = make_section(time.monotonic() - 1)
    measure_in_turns(section, [CountedSystem("late")])
    assert output.lines == ["the time is up before late, round 1"]
    assert {name for _, name, _ in section.recorder.values} == {names.ALL_SUBJECTS}


def test_programs_are_stopped_concurrently(make_section: MakeSection) -> None:
    all_are_stopping = threading.Barrier(4)

    @contextmanager
    def slow_to_stop():  # type: ignore[no-untyped-def]
        yield "started"
        all_are_stopping.wait(30)
        stopped.append(True)

    section, stopped = make_section(math.inf)[0], list[bool]()
    assert [section.start(slow_to_stop()) for _ in range(4)] == ["started"] * 4
    section.stop_all()
    assert len(stopped) == 4


def test_the_page_compares_denoised_with_peers_of_the_same_precision_round_by_round() -> None:
    def series(*samples: float) -> SampleSeries:
        return SampleSeries(samples, "2026-11-26", MACHINE)

    float32, bfloat16 = EvaluationOptions("cuda"), EvaluationOptions("cuda", "bfloat16")
    compiled = EvaluationOptions("cuda", compiled=True)
    rates = {
        float32.name(names.DENOISED): series(300, 100),
        compiled.name(names.BATCHING): series(100),
        float32.name(names.LOCKED): series(30, 20),
        bfloat16.name(names.LOCKED): series(10),
    }
    page = render_accelerator_page(
        {SampleKey(names.LOADS, "real traffic", name, names.EVALUATIONS): rate for name, rate in rates.items()}
    )
    section = page.split("## Real traffic, 16 clients")[1].split("##")[0]
    assert [line.rsplit("|", 2)[1].strip() for line in section.splitlines() if ", float32 |" in line] == [
        "7.5× (5–10)",
        "3×",
        "–",
    ]
    assert "| (a) FastAPI + lock, bfloat16 | 10 | – | – | – | – |" in section
    assert page.count("Not measured yet.") == 3


def test_a_page_is_rendered_from_another_folder_and_an_unknown_section_is_refused(
    repository: Path, tmp_path: Path
) -> None:
    table = (repository / "docs" / "performance-cuda.csv").read_text()
    (tmp_path / "performance-cuda.csv").write_text(table)
    rendered = CliRunner().invoke(cli, ["--out", str(tmp_path), "--render"])
    assert rendered.exit_code == 0, rendered.output
    assert (tmp_path / "performance-cuda.md").read_text() == render_accelerator_page(
        read_samples(tmp_path / "performance-cuda.csv")
    )
    refused = CliRunner().invoke(cli, ["--out", str(tmp_path), "--only", "nothing"])
    assert refused.exit_code == 1
    assert "--only nothing: no such section (known: evaluations, loads)" in refused.stderr


def test_a_rehearsal_does_not_overwrite_the_samples_of_a_gpu(repository: Path) -> None:
    refused = CliRunner().invoke(cli, ["--device", "cpu", "--out", str(repository / "docs")])
    assert refused.exit_code == 1
    assert "--device cpu is a rehearsal" in refused.stderr
