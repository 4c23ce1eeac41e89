"""SIGTERM: what is nearly done is finished, the rest saved and given back; rolling restarts lose nothing."""

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
    restarts: int, jobs: int, site: Site, told: Callable[..., None]
) -> None:
    """Two workers, one of them replaced again and again while jobs of 5 … 400 steps come in through the API."""
    shop, chance = site.shop, random.Random(7)
    workers = [shop.worker("fake", seconds=0.01, lease=10.0, max_batch=8) for _ in range(2)]
    site.ready()
    accepted: list[str] = []
    posting = threading.Thread(target=post, args=(site, jobs, chance, accepted, 0.01))
    posting.start()
    took = []
    for _ in range(restarts):
        time.sleep(chance.uniform(0.1, 0.6))
        workers.append(shop.worker("fake", seconds=0.01, lease=10.0, max_batch=8))
        old = workers.pop(0)
        started = time.monotonic()
        old.signal(signal.SIGTERM)
        assert old.wait() == 0
        took.append(time.monotonic() - started)
    posting.join()
    ended = Counter(shop.finished(job_id).status for job_id in accepted)
    records = [shop.job(job_id) for job_id in accepted]
    for record in records:
        check_events(shop.events(record.id))
    made, due = rows_made(shop).total(), sum(record.request.evaluations for record in records)
    told(
        restarts=restarts,
        jobs=len(accepted),
        ended=dict(ended),
        given_back=sum(record.attempt > 1 for record in records),
        slowest_exit_seconds=round(max(took), 2),
        evaluations_made_twice=made - due,
    )
    assert (len(accepted), ended) == (jobs, Counter(succeeded=jobs))
    assert max(took) < STOP_SECONDS
    assert made == due, "what is given back goes on from exactly where it was"
    check_nothing_left(shop)


@pytest.mark.faults
def test_workers_killed_while_jobs_arrive_lose_and_fail_nothing(site: Site, told: Callable[..., None]) -> None:
    """rq#2236, rq#2061: ten times SIGKILL at a random moment; no job is left over in no queue."""
    shop, chance, jobs = site.shop, random.Random(13), 200
    workers = [shop.worker("fake", seconds=0.005, lease=2.0, max_batch=8) for _ in range(2)]
    site.ready()
    accepted: list[str] = []
    posting = threading.Thread(target=post, args=(site, jobs, chance, accepted, 0.15))
    posting.start()
    kills: list[str] = []
    for _ in range(10):
        time.sleep(chance.uniform(2.0, 4.0))
        workers.pop(0).kill()
        kills.append(datetime.now(UTC).isoformat(timespec="milliseconds"))
        workers.append(shop.worker("fake", seconds=0.005, lease=2.0, max_batch=8))
    posting.join()
    ended = Counter(shop.finished(job_id).status for job_id in accepted)
    again = sum(shop.job(job_id).attempt > 1 for job_id in accepted)
    for job_id in accepted:
        check_events(shop.events(job_id))
    told(kills=10, jobs=len(accepted), ended=dict(ended), begun_again=again)
    failed = [job_id for job_id in accepted if shop.job(job_id).status != "succeeded"]
    assert [story(shop, job_id) for job_id in failed] == [], kills
    assert (len(accepted), ended) == (jobs, Counter(succeeded=jobs))
    assert again > 0
    check_nothing_left(shop)


def story(shop: Harness, job_id: str) -> list[str]:
    """What became of a job: the first and the last step that each attempt told of, and its lines in the log."""
    record = shop.job(job_id)
    told = [f"{record.request.n} x {record.request.steps}, {record.losses} losses"]
    for attempt in range(1, record.attempt + 1):
        steps = [event["step"] for event in shop.events(job_id) if event["attempt"] == attempt and "step" in event]
        told.append(f"attempt {attempt}: {steps[:1]} … {steps[-1:]}")
    return told + [f"{line['time']} {line['event']}" for line in shop.lines(job_id)]


def post(site: Site, jobs: int, chance: random.Random, accepted: list[str], pause: float) -> None:
    """Jobs of 5 … 400 steps, one after the other."""
    with site.api.client() as client:
        for seed in range(jobs):
            body = {"model": "fake", "seed": 10 * seed, "steps": chance.randint(5, 400), "n": chance.randint(1, 3)}
            answer = client.post("/generate", json=body)
            assert answer.status_code == 202, answer.text
            accepted.append(answer.json()["id"])
            time.sleep(pause)


def check_nothing_left(shop: Harness) -> None:
    """No job waits, is between queue and worker, or is held."""
    queue = shop.rq_queue("fake")
    for key in (queue.key, queue.intermediate_queue_key, queue.started_job_registry.key):
        shop.until(lambda key=key: not shop.client.exists(key), f"{key} to be empty")  # type: ignore[misc]


def test_a_front_end_told_to_stop_is_unready_at_once_and_gone_in_time(site: Site, told: Callable[..., None]) -> None:
    shop, api = site.shop, site.api
    shop.worker("fake", seconds=0.02)
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
    refused = httpx.post(f"{api.url}/generate", json={"model": "fake"}, trust_env=False)
    assert api.process is not None
    code = api.process.wait(60)
    took = time.monotonic() - started
    for listener in listeners:
        listener.join(60)
    told(unready_after_seconds=round(unready, 3), exit_code=code, exit_after_seconds=round(took, 2), close_codes=codes)
    assert readiness == (503, ["draining"])
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert codes == [1012] * 3
    assert (code, took < STOP_SECONDS) == (0, True)
    assert shop.job(job["id"]).status == "running"


def _readiness(url: str) -> tuple[int, list[str]]:
    answer = httpx.get(f"{url}/readyz", trust_env=False)
    return answer.status_code, answer.json()["reasons"]
