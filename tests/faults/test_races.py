"""Events at the same moment: posts and cancels, equal posts, listeners and the ends of their jobs."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from denoised.app.admission.queue.job_queue import JobQueue
from tests.faults.site import Site
from tests.faults.test_redis_outage import Follower
from tests.faults.test_worker_killed import check_events

FULL = pytest.mark.faults


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=FULL)])
def test_a_canceled_job_never_ends_otherwise_and_affects_no_other(
    count: int, site: Site, report: Callable[..., None]
) -> None:
    """ComfyUI#2566, rq#2160, cog#2212: posts and cancels at random moments, a bystander next to each."""
    harness, chance = site.harness, random.Random(3)
    for _ in range(2):
        harness.worker("fake", seconds=0.002, max_batch=8)
    site.ready()
    outcomes: Counter[tuple[int, str]] = Counter()
    pairs: list[tuple[str, str, int]] = []

    def race(seed: int) -> None:
        body = {"model": "fake", "steps": 8, "seed": seed, "preview_every": 4}
        with site.api.client() as client:
            job, bystander = (answered(client, "POST", "/generate", json=body).json()["id"] for _ in range(2))
            time.sleep(chance.uniform(0.0, 0.25))
            code = answered(client, "DELETE", f"/jobs/{job}").status_code
            status = answered(client, "GET", f"/jobs/{job}").json()["status"]
            assert answered(client, "DELETE", f"/jobs/{job}").status_code == code, "repeating changes nothing"
        outcomes[code, status] += 1
        pairs.append((job, bystander, code))

    with ThreadPoolExecutor(6) as pool:
        for each in [pool.submit(race, seed) for seed in range(count)]:
            each.result()
    for job, bystander, code in pairs:
        assert harness.finished(bystander).status == "succeeded"
        record = harness.finished(job)
        assert record.status == ("canceled" if code == 200 else "succeeded")
        assert record.status == "succeeded" or record.images == ()
        for job_id in (job, bystander):
            check_events(harness.events(job_id))
    for job, bystander, _ in pairs:
        harness.until(lambda job=job: harness.forgotten(job), "RQ to forget it")  # type: ignore[misc]
        assert harness.forgotten(bystander)
    report(races=count, outcomes={f"{code} {status}": number for (code, status), number in outcomes.items()})
    assert set(outcomes) <= {(200, "canceled"), (409, "succeeded")}
    assert len(outcomes) == 2, "the race was never decided otherwise: it tests nothing"


def answered(client: httpx.Client, method: str, path: str, **body: Any) -> httpx.Response:
    """The first response that is not 503: on a busy machine, Redis may answer too late once."""
    end = time.monotonic() + 60
    while (response := client.request(method, path, **body)).status_code == 503:
        assert time.monotonic() < end, response.text
        time.sleep(0.05)
    return response


@FULL
def test_a_running_job_stops_within_a_turn_of_its_cancel(site: Site, report: Callable[..., None]) -> None:
    """LitServe#165: the slot is free two steps later; a queued job never starts."""
    harness, turn = site.harness, 0.1
    worker = harness.worker("fake", seconds=turn, max_batch=1)
    site.ready()
    late = []
    for seed in range(10):
        job = harness.submit(steps=500, seed=seed)
        queued = harness.submit(model="nobody", steps=3)
        harness.until(lambda job=job: harness.running(job), "it to run")  # type: ignore[misc]
        with site.api.client() as client:
            assert client.delete(f"/jobs/{job}").status_code == 200
            canceled = time.time()
            assert client.delete(f"/jobs/{queued}").status_code == 200
        time.sleep(4 * turn)
        late.append(sum(moment > canceled for moment, _ in worker.evaluations()))
        assert [event["type"] for event in harness.events(queued)] == ["queued", "canceled"]
        harness.until(lambda job=job: harness.forgotten(job), "RQ to forget it")  # type: ignore[misc]
    report(cancels=len(late), evaluations_after_a_cancel=late)
    assert max(late) <= 2, "the one that was being made, and one that began before the message came"


@FULL
@pytest.mark.parametrize("rounds", [100])
def test_equal_posts_with_one_key_at_one_moment_are_one_job(
    rounds: int, open_site: Callable[..., Site], report: Callable[..., None]
) -> None:
    site = open_site(apis=2)
    site.harness.worker("fake")
    site.ready()
    clients = [site.apis[k % 2].client() for k in range(8)]
    for number in range(rounds):
        together = threading.Barrier(len(clients))

        def post(client: Any, number: int = number, together: threading.Barrier = together) -> tuple[int, str]:
            together.wait()
            answer = client.post("/generate", json={"model": "fake"}, headers={"Idempotency-Key": f"k{number}"})
            return answer.status_code, answer.json()["id"]

        with ThreadPoolExecutor(len(clients)) as pool:
            answers = set(pool.map(post, clients))
        assert len(answers) == 1
        assert {code for code, _ in answers} == {202}
    for client in clients:
        client.close()
    jobs = [key for key in site.harness.client.scan_iter("denoised:job:*") if key.count(b":") == 2]
    report(rounds=rounds, posts=rounds * len(clients), jobs=len(jobs))
    assert len(jobs) == rounds


@pytest.mark.parametrize("events", [300, pytest.param(10_000, marks=FULL)])
def test_listeners_get_every_event_once_whatever_is_killed(
    events: int, site: Site, report: Callable[..., None]
) -> None:
    """Workers and the front end are killed, connections cut, listeners reconnect: no gap, no repetition, one end."""
    harness, chance = site.harness, random.Random(11)
    # Many workers are lost before a job makes progress.
    harness.queue = JobQueue(harness.client, harness.store, max_attempts=1000)
    harness.worker("fake", seconds=0.02, lease=1.0)
    site.ready()
    followers: list[tuple[str, Follower]] = []
    heard, kills = 0, Counter[str]()
    over = threading.Event()

    def disturb() -> None:
        while not over.wait(chance.uniform(0.4, 1.5)):
            kind = chance.choice(["worker", "api", "cut"])
            kills[kind] += 1
            if kind == "worker":
                harness.workers[-1].kill()
                harness.worker("fake", seconds=0.02, lease=1.0)
            elif kind == "api":
                site.api.end()
                site.api.start()
            else:
                site.proxy.cut()

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    while heard < events:
        jobs = [harness.submit(steps=chance.randint(20, 150), seed=k, preview_every=10, n=2) for k in range(6)]
        batch = [(job, Follower(site.api, job)) for job in jobs for _ in range(2)]
        for _, follower in batch:
            follower.start()
        for _, follower in batch:
            follower.join(120)
            assert not follower.is_alive()
        followers += batch
        heard = sum(len(follower.events) for _, follower in followers)
    over.set()
    disturbing.join()
    violations = 0
    for job, follower in followers:
        stored = harness.events(job)
        check_events(stored)
        check_events(follower.events)
        violations += [event["seq"] for event in follower.events] != [event["seq"] for event in stored]
    codes = sum((follower.codes for _, follower in followers), Counter[int | None]())
    report(events=heard, listeners=len(followers), kills=dict(kills), close_codes=dict(codes), violations=violations)
    assert violations == 0
    assert [(job, harness.job(job).error) for job, _ in followers if harness.job(job).status != "succeeded"] == []
