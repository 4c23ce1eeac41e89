"""A run on an accelerator: who fails is left out, the time is kept, and the page says what was found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import names
from bench.accelerated import take_turns
from bench.accelerator import cli
from bench.accelerator_page import document
from bench.effort import Effort
from bench.errors import BenchError
from bench.figures import Figure, Key, Samples, read_figures
from bench.machine import Machine
from bench.place import Place
from bench.servers import Manner
from bench.trial import Trial

MACHINE = Machine("A card beside a processor", 16, "x86_64", "2.13.0")


@dataclass
class Counted:
    """Adds its round to what was found; fails in one of them."""

    name: str
    fails: int | None = None

    def measure(self, trial: Trial, number: int) -> None:
        if number == self.fails:
            raise BenchError(f"{self.name} has\nhad enough")
        trial.found.add("three step counts", self.name, names.EVALUATIONS, number)


@dataclass
class EmbeddingCache:
    lines: list[str] = field(default_factory=list)
    kept: int = 0

    def keep(self) -> None:
        self.kept += 1


MakeTrial = Callable[[float], tuple[Trial, EmbeddingCache]]


@pytest.fixture
def trial(tmp_path: Path) -> MakeTrial:
    def make(until: float) -> tuple[Trial, EmbeddingCache]:
        told = EmbeddingCache()
        place = Place(tmp_path, Effort(rounds=3), told.lines.append, ExitStack())
        return Trial(place, Samples(), "cpu", ("float32",), True, told.keep, until), told

    return make


def test_a_subject_that_fails_is_told_and_left_out_and_the_others_go_on(trial: MakeTrial) -> None:
    made, told = trial(math.inf)
    take_turns(made, [Counted("weak", fails=1), Counted("strong")])
    found = {name: values for (_, name, quantity), values in made.found.found.items() if quantity == names.EVALUATIONS}
    assert found == {"weak": [0], "strong": [0, 1, 2]}
    assert [line for line in told.lines if "failed" in line] == ["failed: weak: BenchError: weak has had enough"]
    assert told.kept == 5  # after every turn


def test_nothing_is_begun_when_the_time_is_up(trial: MakeTrial) -> None:
    made, told = trial(time.monotonic() - 1)
    take_turns(made, [Counted("late")])
    assert told.lines == ["the time is up before late, round 1"]
    assert {name for _, name, _ in made.found.found} == {names.EVERYBODY}


def test_what_was_started_is_stopped_side_by_side(trial: MakeTrial) -> None:
    @contextmanager
    def slow_to_stop():  # type: ignore[no-untyped-def]
        yield "started"
        time.sleep(0.3)
        stopped.append(True)

    made, stopped = trial(math.inf)[0], list[bool]()
    assert [made.start(slow_to_stop()) for _ in range(4)] == ["started"] * 4
    began = time.monotonic()
    made.stop_all()
    assert len(stopped) == 4
    assert time.monotonic() - began < 0.9


def test_the_page_holds_ours_against_the_peers_of_the_same_precision_round_by_round() -> None:
    def figure(*samples: float) -> Figure:
        return Figure(samples, "2026-11-26", MACHINE)

    exact, rough, compiled = Manner("cuda"), Manner("cuda", "bfloat16"), Manner("cuda", compiled=True)
    rates = {
        exact.of(names.OURS): figure(300, 100),
        compiled.of(names.BATCHING): figure(100),
        exact.of(names.LOCKED): figure(30, 20),
        rough.of(names.LOCKED): figure(10),
    }
    page = document({Key(names.LOADS, "real traffic", name, names.EVALUATIONS): rate for name, rate in rates.items()})
    section = page.split("## Real traffic, 16 clients")[1].split("##")[0]
    assert [line.rsplit("|", 2)[1].strip() for line in section.splitlines() if ", float32 |" in line] == [
        "7.5× (5–10)",
        "3×",
        "–",
    ]
    assert "| (a) FastAPI + lock, bfloat16 | 10 | – | – | – | – |" in section
    assert page.count("Not measured yet.") == 3


def test_a_page_is_rendered_from_figures_elsewhere_and_a_wrong_section_is_refused(
    repository: Path, tmp_path: Path
) -> None:
    table = (repository / "docs" / "performance-cuda.csv").read_text()
    (tmp_path / "performance-cuda.csv").write_text(table)
    rendered = CliRunner().invoke(cli, ["--out", str(tmp_path), "--render"])
    assert rendered.exit_code == 0, rendered.output
    assert (tmp_path / "performance-cuda.md").read_text() == document(read_figures(tmp_path / "performance-cuda.csv"))
    refused = CliRunner().invoke(cli, ["--out", str(tmp_path), "--only", "nothing"])
    assert refused.exit_code == 1
    assert "--only nothing: there is no such section (of evaluations, loads)" in refused.stderr


def test_a_rehearsal_does_not_write_over_the_figures_of_a_gpu(repository: Path) -> None:
    refused = CliRunner().invoke(cli, ["--device", "cpu", "--out", str(repository / "docs")])
    assert refused.exit_code == 1
    assert "--device cpu is a rehearsal" in refused.stderr
