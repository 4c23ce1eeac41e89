"""More models than fit into memory: those used longest ago leave, and come back when jobs wait for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Harness, WorkerProcess, write_model


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Harness]:
    harness = Harness(valkey_url, tmp_path_factory.mktemp("workers"))
    yield harness
    harness.close()


@pytest.fixture
def serve(harness: Harness, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """`serve(weight, …)`: a worker of `fake` and the models `a`, `b` and `c` of weight 1, of which so many fit."""
    harness.client.flushall()
    for name in "abc":
        write_model(tmp_path / "models" / name, f"{name}1")

    def serve(budget: int, **options: float) -> WorkerProcess:
        return harness.worker("fake", watched=tmp_path / "models", lease=2.0, budget=budget, **options)  # type: ignore[arg-type]

    yield serve
    for worker in harness.workers:
        if worker.exit_code() is None:
            worker.kill()
    harness.workers.clear()


def states(harness: Harness) -> dict[str, str]:
    (report,) = harness.store.workers.live() or [None]
    return {} if report is None else {each["model"]: each["state"] for each in report.states if each["model"] != "fake"}


def wait(harness: Harness, **wanted: str) -> None:
    harness.until(lambda: states(harness) == wanted, f"{wanted}, not {states(harness)}")


def done(harness: Harness, model: str) -> None:
    assert harness.finished(harness.submit(model=model)).status == "succeeded"


def test_the_models_used_longest_ago_leave_and_come_back(harness: Harness, serve: Callable[..., WorkerProcess]) -> None:
    serve(2)
    wait(harness, a="unloaded", b="serving", c="serving")
    (report,) = harness.store.workers.live()
    assert [card["name"] for card in report.models] == ["fake", "a", "b", "c"], "all take jobs"
    done(harness, "b")
    done(harness, "a")
    wait(harness, a="serving", b="serving", c="unloaded")
    done(harness, "fake")
    done(harness, "c")
    done(harness, "b")
    wait(harness, a="unloaded", b="serving", c="serving")


@pytest.mark.slow
def test_a_model_leaves_when_its_running_jobs_have_ended_and_none_is_starved(
    harness: Harness, serve: Callable[..., WorkerProcess]
) -> None:
    """Jobs of `a` wait at any time: after ten seconds in memory it makes room for `b`, and comes back."""
    serve(1, seconds=0.02)
    harness.until(lambda: len(states(harness)) == 3, "all models were loaded once")
    first = [harness.submit(model="a", steps=100, n=16) for _ in range(12)]
    harness.until(lambda: harness.running(first[0]), "a running job")
    other = harness.submit(model="b")
    records = [harness.finished(job) for job in [*first, other]]
    assert {record.status for record in records} == {"succeeded"}
    assert {record.attempt for record in records} == {1}, "no running job was interrupted"
    assert float(records[-1].finished_at or 0) < max(float(record.finished_at or 0) for record in records[:-1])


def test_a_model_that_can_never_fit_is_refused(
    harness: Harness, serve: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    write_model(tmp_path / "models" / "a", "a1", weight=3 << 30)
    serve(2 << 30)
    wait(harness, a="failed", b="serving", c="serving")
    (report,) = harness.store.workers.live()
    reason = next(each["reason"] for each in report.states if each["model"] == "a")
    assert reason == f"{tmp_path / 'models' / 'a'}: its weights take 3 GiB (allowed: 2, --model-memory)"
