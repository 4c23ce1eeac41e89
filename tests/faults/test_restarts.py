"""SIGTERM: jobs that are nearly done are finished, the others saved and requeued; rolling restarts lose nothing."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.faults.site import Site
from tests.faults.test_worker_killed import check_events, rows_made
from tests.harness import Harness

STOP_SECONDS = 10.0


@pytest.mark.parametrize(("restarts", "jobs"), [(1, 12), pytest.param(10, 200, marks=pytest.mark.faults)])
def test_rolling_restarts_lose_and_fail_nothing(
    restarts: int, jobs: int, site: Site, report: Callable[..., None]
) -> None:
    """Two workers, one of them replaced again and again while jobs of 5 … 400 steps are posted to the API."""
    harness, chance = site.harness, random.Random(7)
    workers = [harness.worker("fake", seconds=0.01, lease=10.0, max_batch=8) for _ in range(2)]
    site.ready()
    accepted: list[str] = []
    posting = threading.Thread(target=post, args=(site, jobs, chance, accepted, 0.01))
    posting.start()
    took = []
    for _ in range(restarts):
        time.sleep(chance.uniform(0.1, 0.6))
        workers.append(harness.worker("fake", seconds=0.01, lease=10.0, max_batch=8))
        old = workers.pop(0)
        started = time.monotonic()
        old.signal(signal.SIGTERM)
        assert old.wait() == 0
        took.append(time.monotonic() - started)
    posting.join()
    ended = Counter(harness.finished(job_id).status for job_id in accepted)
    records = [harness.job(job_id) for job_id in accepted]
    for record in records:
        check_events(harness.events(record.id))
    made, due = rows_made(harness).total(), sum(record.request.evaluations for record in records)
    report(
        restarts=restarts,
        jobs=len(accepted),
        ended=dict(ended),
        requeued=sum(record.attempt > 1 for record in records),
        slowest_exit_seconds=round(max(took), 2),
        evaluations_made_twice=made - due,
    )
    assert (len(accepted), ended) == (jobs, Counter(succeeded=jobs))
    assert max(took) < STOP_SECONDS
    assert made == due, "a requeued job continues exactly where it was"
    check_nothing_left(harness)


@pytest.mark.faults
def test_workers_killed_while_jobs_arrive_lose_and_fail_nothing(site: Site, report: Callable[..., None]) -> None:
    """rq#2236, rq#2061: ten times SIGKILL at a random moment; no job is left over in no queue."""
    harness, chance, jobs = site.harness, random.Random(13), 200
    workers = [harness.worker("fake", seconds=0.005, lease=2.0, max_batch=8) for _ in range(2)]
    site.ready()
    accepted: list[str] = []
    posting = threading.Thread(target=post, args=(site, jobs, chance, accepted, 0.15))
    posting.start()
    kills: list[str] = []
    for _ in range(10):
        time.sleep(chance.uniform(2.0, 4.0))
        workers.pop(0).kill()
        kills.append(datetime.now(UTC).isoformat(timespec="milliseconds"))
        workers.append(harness.worker("fake", seconds=0.005, lease=2.0, max_batch=8))
    posting.join()
    ended = Counter(harness.finished(job_id).status for job_id in accepted)
    again = sum(harness.job(job_id).attempt > 1 for job_id in accepted)
    for job_id in accepted:
        check_events(harness.events(job_id))
    report(kills=10, jobs=len(accepted), ended=dict(ended), begun_again=again)
    failed = [job_id for job_id in accepted if harness.job(job_id).status != "succeeded"]
    assert [history(harness, job_id) for job_id in failed] == [], kills
    assert (len(accepted), ended) == (jobs, Counter(succeeded=jobs))
    assert again > 0
    check_nothing_left(harness)


def history(harness: Harness, job_id: str) -> list[str]:
    """The history of a job: the first and the last step of each attempt, and its lines in the log."""
    record = harness.job(job_id)
    lines = [f"{record.request.n} x {record.request.steps}, {record.losses} losses"]
    for attempt in range(1, record.attempt + 1):
        steps = [event["step"] for event in harness.events(job_id) if event["attempt"] == attempt and "step" in event]
        lines.append(f"attempt {attempt}: {steps[:1]} … {steps[-1:]}")
    return lines + [f"{line['time']} {line['event']}" for line in harness.lines(job_id)]


def post(site: Site, jobs: int, chance: random.Random, accepted: list[str], pause: float) -> None:
    """Jobs of 5 … 400 steps, one after the other."""
    with site.api.client() as client:
        for seed in range(jobs):
            body = {"model": "fake", "seed": 10 * seed, "steps": chance.randint(5, 400), "n": chance.randint(1, 3)}
            answer = client.post("/generate", json=body)
            assert answer.status_code == 202, answer.text
            accepted.append(answer.json()["id"])
            time.sleep(pause)


def check_nothing_left(harness: Harness) -> None:
    """No job is queued, in RQ's intermediate queue, or held."""
    queue = harness.rq_queue("fake")
    for key in (queue.key, queue.intermediate_queue_key, queue.started_job_registry.key):
        harness.until(lambda key=key: not harness.client.exists(key), f"{key} to be empty")  # type: ignore[misc]


def test_a_stopping_front_end_is_unready_at_once_and_exits_in_time(site: Site, report: Callable[..., None]) -> None:
    harness, api = site.harness, site.api
    harness.worker("fake", seconds=0.02)
    site.ready()
    codes: list[int | None] = []
    with api.client() as client:
        job = client.post("/generate", json={"model": "fake", "steps": 1000}).json()

    def listen() -> None:
        with connect(f"{api.url.replace('http', 'ws')}/jobs/{job['id']}/events", proxy=None) as stream:
            with contextlib.suppress(ConnectionClosed):
                heard.extend(json.loads(message) for message in stream)
            codes.append(stream.close_code)

    heard: list[object] = []
    listeners = [threading.Thread(target=listen) for _ in range(3)]
    for listener in listeners:
        listener.start()
    site.until(lambda: len(heard) > 6, "events")
    api.send(signal.SIGTERM)
    started = time.monotonic()
    site.until(lambda: _readiness(api.url) != (200, []), "the end of readiness")
    unready = time.monotonic() - started
    readiness = _readiness(api.url)
    refused = httpx.post(f"{api.url}/generate", json={"model": "fake"}, trust_env=False, verify=False)
    assert api.process is not None
    code = api.process.wait(60)
    took = time.monotonic() - started
    for listener in listeners:
        listener.join(60)
    report(
        unready_after_seconds=round(unready, 3), exit_code=code, exit_after_seconds=round(took, 2), close_codes=codes
    )
    assert readiness == (503, ["draining"])
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert codes == [1012] * 3
    assert (code, took < STOP_SECONDS) == (0, True)
    assert harness.job(job["id"]).status == "running"


def _readiness(url: str) -> tuple[int, list[str]]:
    answer = httpx.get(f"{url}/readyz", trust_env=False, verify=False)
    return answer.status_code, answer.json()["reasons"]
