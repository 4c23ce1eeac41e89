"""Models that are added, replaced and removed while workers serve: real processes, and model folders that change."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from denoised.jobs.numerics import digest_in
from denoised.jobs.record import JobRecord
from denoised.jobs.store import redis_keys as keys
from tests.harness import Harness, WorkerProcess, write_model

SLOW = {"model": "shoes", "steps": 200}  # with 0.02 s for each evaluation, four seconds


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Harness]:
    harness = Harness(valkey_url, tmp_path_factory.mktemp("workers"))
    yield harness
    harness.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    watched = tmp_path / "models"
    watched.mkdir()
    return watched


@pytest.fixture
def serve(harness: Harness, folder: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """`serve(watched, …)`: a worker of `fake` and of the models in a watched folder."""
    harness.client.flushall()

    def serve(watched: Path = folder, **options: Any) -> WorkerProcess:
        return harness.worker("fake", **{"watched": watched, "lease": 2.0, "seconds": 0.02, **options})

    yield serve
    for worker in harness.workers:
        if worker.exit_code() is None:
            worker.kill()
    harness.workers.clear()


def states(harness: Harness, model: str) -> list[tuple[str, str, str]]:
    """(state, digest, reason) of a model, on each live worker."""
    found = [each for report in harness.store.workers.live() for each in report.states if each["model"] == model]
    return [(each["state"], each["digest"], each["reason"]) for each in found]


def made_with(record: JobRecord) -> str | None:
    """The digest of the model that made a job's pictures."""
    assert (record.status, record.numerics is not None) == ("succeeded", True), record.error
    return digest_in(str(record.numerics))


def wait_served(harness: Harness, model: str, digest: str, workers: int = 1) -> None:
    wanted = [("serving", digest, "")] * workers
    harness.until(lambda: states(harness, model) == wanted, f"{model} with {digest}: {states(harness, model)}")


def test_a_folder_that_appears_is_served_and_one_that_is_deleted_is_not(
    harness: Harness, folder: Path, serve: Callable[..., WorkerProcess]
) -> None:
    serve()
    write_model(folder / "shoes", "a1")
    wait_served(harness, "shoes", "a1")
    assert made_with(harness.finished(harness.submit(model="shoes"))) == "a1"
    (report,) = harness.store.workers.live()
    assert [card["name"] for card in report.models] == ["fake", "shoes"]
    running = harness.submit(**SLOW)
    harness.until(lambda: harness.running(running), "a running job")
    shutil.rmtree(folder / "shoes")
    harness.until(lambda: states(harness, "shoes") == [("draining", "a1", "")], "the removal")
    waiting = harness.submit(model="shoes")
    assert harness.finished(running).status == "succeeded", "with the model that it began with"
    harness.until(lambda: states(harness, "shoes") == [], "the removal")
    assert not harness.client.exists(keys.claims("shoes"))
    assert harness.job(waiting).status == "queued", "the folder may come back"
    assert harness.finished(harness.submit(model="fake")).status == "succeeded"
    write_model(folder / "shoes", "a1")
    assert harness.finished(waiting).status == "succeeded"


def test_running_jobs_end_with_the_old_weights_and_waiting_ones_begin_with_the_new(
    harness: Harness, folder: Path, serve: Callable[..., WorkerProcess]
) -> None:
    write_model(folder / "shoes", "a1")
    serve()
    wait_served(harness, "shoes", "a1")
    running = harness.submit(**SLOW)
    harness.until(lambda: harness.running(running), "a running job")
    write_model(folder / "shoes", "b2b2")
    harness.until(lambda: states(harness, "shoes") == [("draining", "a1", "")], "the replacement")
    waiting = harness.submit(model="shoes")
    ended = harness.finished(running)
    assert (ended.status, ended.attempt) == ("succeeded", 1)
    assert made_with(ended) == "a1"
    assert made_with(harness.finished(waiting)) == "b2b2"
    wait_served(harness, "shoes", "b2b2")


def test_a_refused_folder_leaves_the_old_model_serving(
    harness: Harness, folder: Path, serve: Callable[..., WorkerProcess]
) -> None:
    write_model(folder / "shoes", "a1")
    write_model(folder / "hats", "c3", refused="no such file")
    serve()
    wait_served(harness, "shoes", "a1")
    harness.until(lambda: states(harness, "hats") == [("failed", "", f"{folder / 'hats'}: no such file")], "a refusal")
    write_model(folder / "shoes", "b2", refused="unet/config.json: missing")
    reason = f"{folder / 'shoes'}: unet/config.json: missing"
    harness.until(lambda: states(harness, "shoes") == [("serving", "a1", reason)], "a refusal")
    assert made_with(harness.finished(harness.submit(model="shoes"))) == "a1"
    write_model(folder / "shoes", "b2")
    write_model(folder / "hats", "c3")
    wait_served(harness, "shoes", "b2")
    wait_served(harness, "hats", "c3")


def test_an_operator_removes_a_model_for_all_workers_and_for_those_that_start_later(
    harness: Harness, folder: Path, serve: Callable[..., WorkerProcess]
) -> None:
    write_model(folder / "shoes", "a1")
    first = serve(max_batch=1)
    wait_served(harness, "shoes", "a1")
    orders = harness.store.workers.orders
    running = harness.submit(**SLOW)
    harness.until(lambda: harness.running(running), "a running job")
    orders.remove("shoes")
    harness.until(lambda: states(harness, "shoes") == [("draining", "a1", "")], "the removal")
    waiting = harness.submit(model="shoes")
    assert harness.finished(running).status == "succeeded"
    error = harness.finished(waiting).error
    assert error == {"code": "model_removed", "message": "the model shoes was removed by an operator"}
    first.kill()
    serve()
    harness.until(lambda: len(harness.store.workers.live()) == 1, "the next worker")
    later = harness.submit(model="shoes")
    assert harness.finished(later).error is not None, "the order is in Redis"
    orders.add("shoes")
    wait_served(harness, "shoes", "a1")
    assert harness.finished(harness.submit(model="shoes")).status == "succeeded"


def test_reloading_the_same_files_changes_nothing(
    harness: Harness, folder: Path, serve: Callable[..., WorkerProcess]
) -> None:
    write_model(folder / "shoes", "a1", seconds=0.5)
    serve()
    wait_served(harness, "shoes", "a1")
    running = harness.submit(**SLOW)
    harness.until(lambda: harness.running(running), "a running job")
    harness.store.workers.orders.reload("shoes")
    harness.store.workers.orders.reload("fake")
    other = harness.submit(model="shoes")
    assert harness.finished(other).finished_at < harness.finished(running).finished_at, "it did not wait"
    wait_served(harness, "shoes", "a1")


def test_two_workers_replace_a_model_together_and_never_serve_two_digests_at_once(
    harness: Harness, folder: Path, serve: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """The second worker has a folder of its own, which changes later."""
    own = tmp_path / "own"
    for each in (folder, own):
        write_model(each / "shoes", "a1")
    serve(seconds=0.005)
    serve(own, seconds=0.005)
    wait_served(harness, "shoes", "a1", workers=2)
    write_model(folder / "shoes", "b2b2")
    harness.until(lambda: sorted(each[0] for each in states(harness, "shoes")) == ["serving", "waiting"], "one waits")
    jobs = [harness.submit(model="shoes", steps=40) for _ in range(8)]
    assert all(made_with(harness.finished(job)) == "a1" for job in jobs), "both serve the old weights"
    write_model(own / "shoes", "b2b2", seconds=0.5)
    while states(harness, "shoes") != [("serving", "b2b2", "")] * 2:
        jobs.append(harness.submit(model="shoes", steps=40))
        time.sleep(0.05)
    records = [harness.finished(job) for job in [*jobs, harness.submit(model="shoes")]]
    assert {record.status for record in records} == {"succeeded"}
    old = [record for record in records if made_with(record) == "a1"]
    new = [record for record in records if made_with(record) == "b2b2"]
    assert len(old) + len(new) == len(records)
    assert new
    assert max(float(each.finished_at or 0) for each in old) <= min(float(each.started_at or 0) for each in new)


@pytest.mark.faults
def test_a_worker_that_is_killed_while_it_loads_holds_nobody_up(
    harness: Harness, folder: Path, serve: Callable[..., WorkerProcess]
) -> None:
    write_model(folder / "shoes", "a1")
    serve()
    wait_served(harness, "shoes", "a1")
    second = serve()
    wait_served(harness, "shoes", "a1", workers=2)
    write_model(folder / "shoes", "b2", seconds=4.0)
    time.sleep(4.5)  # both are loading
    assert states(harness, "shoes") == [("serving", "a1", "")] * 2
    second.kill()
    wait_served(harness, "shoes", "b2")
    third = serve()
    wait_served(harness, "shoes", "b2", workers=2)
    third.kill()
