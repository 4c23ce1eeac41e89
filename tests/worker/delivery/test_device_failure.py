"""A worker whose device breaks leaves the fleet; its jobs end elsewhere with the same bytes, and without a loss."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.harness import Harness, WorkerProcess


@pytest.fixture
def harness(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Harness]:
    harness = Harness(valkey_url, tmp_path_factory.mktemp("device"))
    harness.client.flushall()
    yield harness
    harness.close()


def check_left(harness: Harness, worker: WorkerProcess, reason: str) -> None:
    """A worker has left: it exits with an error of one line, and nothing in Redis names it any more."""
    assert worker.wait() == 1
    (error,) = [line for line in harness.log().splitlines() if line.startswith("denoised.worker.errors.DeviceError")]
    assert reason in error
    assert harness.store.workers.live() == []


@pytest.mark.parametrize("pipelined", [False, True])
def test_after_a_fatal_error_all_jobs_go_back_and_succeed_elsewhere(pipelined: bool, harness: Harness) -> None:
    """A sticky error: everything on the device fails, the copying of resume points included."""
    broken = harness.worker("fake", seconds=0.02, fatal_class=2, min_pipelined_images=2 if pipelined else None)
    running = [harness.submit(label=1, steps=150, seed=seed, n=2, preview_every=1) for seed in range(3)]
    for job_id in running:
        harness.until(lambda job_id=job_id: harness.running(job_id), "the jobs to run")  # type: ignore[misc]
    guilty = harness.submit(label=2, steps=150)
    check_left(harness, broken, "device cpu does not evaluate 'fake' any more (RuntimeError: CUDA error: an illegal")
    for job_id in (*running, guilty):
        record = harness.job(job_id)
        assert (record.status, record.losses, record.error) == ("queued", 0, None)
    assert harness.rq_queue("fake").get_job_ids() == [*running, guilty]
    harness.worker("fake")
    ended = [harness.sha256(job_id) for job_id in (*running, guilty)]
    again = [harness.submit(label=1, steps=150, seed=seed, n=2) for seed in range(3)]
    again.append(harness.submit(label=2, steps=150))
    assert ended == [harness.sha256(job_id) for job_id in again]
    harness.until(lambda: harness.forgotten(guilty), "RQ to forget the job")


def test_three_failing_jobs_in_a_row_reveal_a_device_with_wrong_results(harness: Harness) -> None:
    """NaN is a fault of the job, until three jobs have it. What the device has made is not used again."""
    broken = harness.worker("fake", seconds=0.01, corrupting_class=2)
    running = harness.submit(label=1, steps=300)
    harness.until(lambda: harness.job(running).step > 100, "a job to be saved")
    first = harness.submit(label=2, steps=300)
    failed = [job_id for job_id in (first, running) if harness.finished(job_id).status == "failed"]
    assert failed == [first, running]
    others = [harness.submit(label=1, seed=seed) for seed in range(3)]
    check_left(harness, broken, "device cpu computes another result for 'fake' than when this worker started")
    for job_id in others:
        record = harness.job(job_id)
        assert (record.status, record.losses, record.images) == ("queued", 0, ())
    harness.worker("fake")
    assert [harness.finished(job_id).status for job_id in others] == ["succeeded"] * 3


def test_three_failing_jobs_of_a_sound_device_fail_and_the_worker_stays(harness: Harness) -> None:
    """Class 3 of this model comes out as NaN on every device."""
    worker = harness.worker("fake")
    assert [harness.finished(harness.submit(label=3)).status for _ in range(7)] == ["failed"] * 7
    assert harness.finished(harness.submit(label=1)).status == "succeeded"
    assert worker.exit_code() is None


@pytest.mark.parametrize("decoding", [False, True])
def test_a_job_out_of_memory_tries_one_other_worker(decoding: bool, harness: Harness) -> None:
    """It fits there, as soon as that worker takes it, and no loss is counted."""
    latents = {"decode_seconds": 0.0} if decoding else {}
    large = harness.worker("fake", lease=5.0, **latents)
    small = harness.worker("fake", lease=1.0, oom_class=-1 if decoding else 2, undecodable=decoding, **latents)
    wait_shared(harness, 2)
    large.signal(signal.SIGSTOP)
    jobs = [harness.submit(label=2, seed=seed, n=2) for seed in range(2)]
    harness.until(lambda: all(harness.job(job_id).no_memory_on for job_id in jobs), "the small worker to decline them")
    large.signal(signal.SIGCONT)
    records = [harness.finished(job_id) for job_id in jobs]
    assert [(record.status, record.losses, record.attempt) for record in records] == [("succeeded", 0, 2)] * 2
    assert small.exit_code() is None


def wait_shared(harness: Harness, workers: int) -> None:
    """Wait until each worker has reported since the last one came."""
    started = time.time()
    harness.until(
        lambda: sum(report.reported_at > started + 0.2 for report in harness.store.workers.live()) == workers,
        "the reports",
    )


def test_a_job_that_fits_on_neither_worker_fails_after_two_attempts(harness: Harness) -> None:
    for _ in range(2):
        harness.worker("fake", oom_class=2, lease=1.0)
    harness.until(lambda: len(harness.store.workers.live()) == 2, "both workers")
    wait_shared(harness, 2)
    record = harness.finished(harness.submit(label=2))
    assert (record.error or {})["code"] == "out_of_memory"
    starts = [event["worker"] for event in harness.events(record.id) if event["type"] == "started"]
    assert len(starts) == len(set(starts)) == 2
    assert harness.finished(harness.submit(label=1)).status == "succeeded"
