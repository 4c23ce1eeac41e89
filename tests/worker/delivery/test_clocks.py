"""Redis' clock decides: a worker whose own clock is wrong steals no job and loses none."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
import redis
from rq.executions import ExecutionRegistry
from rq.registry import StartedJobRegistry

from denoised.jobs.store.queue_keys import QueueKeys
from denoised.jobs.store.store import Store
from denoised.worker.delivery.housekeeper import Housekeeper
from tests.harness import Harness

LEASE = 2.0


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Harness]:
    harness = Harness(valkey_url, tmp_path_factory.mktemp("clocks"))
    harness.client.flushall()
    yield harness
    harness.close()


@pytest.mark.parametrize(
    "ahead", [pytest.param(60.0, marks=pytest.mark.slow), -60.0, 3600.0, pytest.param(-3600.0, marks=pytest.mark.slow)]
)
def test_a_wrong_clock_steals_no_job_and_loses_none(ahead: float, harness: Harness) -> None:
    """redis-semaphore#13: two workers hold jobs for three leases; each job is done in its first attempt."""
    model = f"clock{ahead:+.0f}"
    workers = [harness.worker(model, seconds=0.1, lease=LEASE, clock_ahead=shift, max_batch=4) for shift in (0, ahead)]
    jobs = [harness.submit(model=model, steps=60, seed=seed) for seed in range(8)]
    harness.until(lambda: all(harness.running(job_id) for job_id in jobs), "all to run")
    now = time.time()
    reports = [report for report in harness.store.workers.live() if report.models[0]["name"] == model]
    assert len(reports) == 2
    assert all(abs(report.reported_at - now) < LEASE for report in reports)
    records = [harness.finished(job_id) for job_id in jobs]
    assert {(record.status, record.attempt, record.losses) for record in records} == {("succeeded", 1, 0)}
    for record in records:
        assert record.started_at is not None
        assert record.finished_at is not None
        assert record.created_at - 1 <= record.started_at <= record.finished_at <= time.time() + 1
    counters = [report.counters for report in harness.store.workers.live() if report.models[0]["name"] == model]
    assert all(each["queue_seconds"] < 100 for each in counters)
    for worker in workers:
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


@pytest.mark.parametrize("ahead", [30.0, -30.0])
def test_the_jobs_of_a_lost_worker_are_requeued_after_its_lease_whatever_the_clocks_say(
    ahead: float, harness: Harness
) -> None:
    model = f"lost{ahead:+.0f}"
    lost = harness.worker(model, seconds=0.05, lease=LEASE, clock_ahead=ahead)
    job_id = harness.submit(model=model, steps=100)
    harness.until(lambda: harness.running(job_id), "the job to run")
    other = harness.worker(model, lease=LEASE, clock_ahead=-ahead)
    lost.kill()
    started = time.monotonic()
    record = harness.finished(job_id)
    assert (record.status, record.attempt) == ("succeeded", 2)
    assert time.monotonic() - started < 5 * LEASE
    other.signal(signal.SIGTERM)
    other.wait()


def test_an_evaluation_of_several_leases_fails_no_job(harness: Harness) -> None:
    """Another worker with the shortest lease watches meanwhile."""
    slow = harness.worker("slowest", seconds=2.5, lease=1.0)
    job_id = harness.submit(model="slowest", steps=2)
    harness.until(lambda: harness.job(job_id).status == "running", "the job to run")
    harness.worker("slowest", lease=1.0, clock_ahead=30.0)
    record = harness.finished(job_id)
    assert (record.status, record.attempt) == ("succeeded", 1)
    assert slow.exit_code() is None


def test_rq_finds_the_jobs_that_our_scripts_have_taken(harness: Harness) -> None:
    """RQ's own classes read its keys as our scripts write them."""
    harness.worker("seen", seconds=0.1)
    job_id = harness.submit(model="seen", steps=60)
    harness.until(lambda: harness.running(job_id), "the job to run")
    registry = StartedJobRegistry(queue=harness.rq_queue("seen"))
    assert registry.get_job_ids(cleanup=False) == [job_id]
    (execution,) = ExecutionRegistry(job_id, harness.client).get_executions()
    assert execution.composite_key.startswith(job_id)
    assert harness.client.hget(f"rq:job:{job_id}", "status") == b"started"
    assert harness.finished(job_id).status == "succeeded"
    harness.until(lambda: harness.forgotten(job_id), "RQ to forget the job")


def expired_lease(client: redis.Redis) -> QueueKeys:
    """A queue whose only job has a lease that ended just now, by Redis' clock."""
    queue = QueueKeys("stepped", "rq:queue:stepped", "rq:queue:stepped:intermediate", "rq:wip:stepped", "rq:job:")
    client.delete(queue.waiting)
    client.hset("rq:job:innocent", "status", "started")
    client.zadd(queue.started, {"innocent:execution": time.time() - 0.01})
    return queue


def test_nothing_is_requeued_later_than_the_clock_can_be(client: redis.Redis) -> None:
    """Redis' clock was set between the renewal of the leases and the look for lost ones."""
    queue, store = expired_lease(client), Store(client)
    assert store.attempts.requeue_lost(queue, 10.0, latest=time.time() - 1.0) == 0
    assert store.attempts.requeue_lost(queue, 10.0, latest=time.time() + 1.0) == 1


def test_after_a_step_of_redis_clock_other_workers_have_half_a_lease_to_renew(client: redis.Redis) -> None:
    """A step ends every lease at once. Without the pause, the first worker to notice takes the jobs of all others."""
    queue, lease = expired_lease(client), 2.0
    client.zadd(queue.started, {"innocent:execution": time.time() + 3600})
    step = 0.0
    housekeeper = Housekeeper(Store(client), lambda: [queue], lease, lambda: time.time() + step, lambda: None)
    housekeeper.start()
    try:
        time.sleep(lease / 4)
        step = 10.0
        time.sleep(lease / 4)
        client.zadd(queue.started, {"innocent:execution": time.time() - 0.01})
        stepped_at = time.monotonic()
        while not client.llen(queue.waiting):
            assert time.monotonic() - stepped_at < 10 * lease
            time.sleep(0.01)
        assert time.monotonic() - stepped_at > lease / 4, "it waited before it requeued"
    finally:
        housekeeper.stop()
        housekeeper.join()
