"""A worker without the memory to start a job leaves it to others, and to itself when nothing else runs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from denoised.worker.delivery.job_fetcher import RETRY_SECONDS
from tests.harness import Harness


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Harness]:
    harness = Harness(valkey_url, tmp_path_factory.mktemp("memory"))
    harness.client.flushall()
    yield harness
    harness.close()


def types(harness: Harness, job_id: str) -> list[str]:
    return [event["type"] for event in harness.events(job_id) if event["type"] != "progress"]


def test_another_worker_starts_the_job(harness: Harness) -> None:
    narrow = harness.worker("shared", unstartable_class=2)
    assert harness.finished(harness.submit(model="shared", label=1)).status == "succeeded"
    job_id = harness.submit(model="shared", label=2)
    harness.until(lambda: harness.job(job_id).losses, "the first worker to give it back")
    harness.worker("shared")
    record = harness.finished(job_id)
    assert record.status == "succeeded"
    assert types(harness, job_id)[:3] == ["queued", "started", "queued"]
    assert narrow.exit_code() is None
    harness.until(lambda: harness.forgotten(job_id), "RQ to forget the job")


def test_a_job_that_no_worker_can_start_fails_after_its_attempts(harness: Harness) -> None:
    """It takes no other job with it, and the workers go on."""
    harness.worker("alone", unstartable_class=2)
    started = time.monotonic()
    job_id = harness.submit(model="alone", label=2)
    record = harness.finished(job_id)
    assert record.error == {
        "code": "out_of_memory",
        "message": "3 attempt(s) in a row failed; the last worker had not enough memory to start this job",
    }
    assert time.monotonic() - started >= 2 * RETRY_SECONDS, "other workers had the time to take it"
    assert types(harness, job_id)[-1] == "failed"
    assert harness.finished(harness.submit(model="alone", label=1)).status == "succeeded"
    harness.until(lambda: harness.forgotten(job_id), "RQ to forget the job")


def test_a_busy_worker_tries_again_when_it_has_nothing_else_in_memory(harness: Harness) -> None:
    """The job waits for the jobs that run; jobs behind it do not overtake it on this worker."""
    harness.worker("busy", unstartable_class=2, seconds=0.02, lease=5.0)
    running = harness.submit(model="busy", label=1, steps=150)
    harness.until(lambda: harness.running(running), "a job to run")
    job_id = harness.submit(model="busy", label=2)
    harness.until(lambda: harness.job(job_id).losses, "it to be given back")
    behind = harness.submit(model="busy", label=0)
    while not harness.job(running).terminal:
        assert (harness.job(job_id).losses, harness.job(behind).attempt) == (1, 1)
        assert harness.job(behind).status == "queued"
        time.sleep(0.05)
    assert harness.finished(job_id).status == "failed"
    assert harness.finished(behind).status == "succeeded"
