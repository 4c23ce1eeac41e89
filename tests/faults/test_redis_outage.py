"""Redis is down, silent, slow, cut off or full: the front end answers in time, and no accepted job is lost."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.faults.site import API_SECONDS, Api, Site
from tests.faults.test_worker_killed import check_events


def _first_of(client: httpx.Client, path: str) -> httpx.Response:
    """The response to a GET without its body, which a stream sends over time."""
    with client.stream("GET", path) as answer:
        return answer


BODY = {"model": "fake", "steps": 5}
REQUESTS: list[Callable[[httpx.Client, str], httpx.Response]] = [
    lambda client, job: client.post("/generate", json=BODY),
    lambda client, job: client.post("/generate", json=BODY, headers={"Idempotency-Key": "k"}),
    lambda client, job: client.post("/generate", json=BODY, headers={"Prefer": "wait=0"}),
    lambda client, job: client.get(f"/jobs/{job}"),
    lambda client, job: client.get("/jobs"),
    lambda client, job: client.delete(f"/jobs/{job}"),
    lambda client, job: client.get(f"/jobs/{job}/images/0"),
    lambda client, job: client.get(f"/jobs/{job}/animation"),
    lambda client, job: _first_of(client, f"/jobs/{job}/events"),
    lambda client, job: client.get("/readyz"),
    lambda client, job: client.post("/v1/images/generations", json={"prompt": ""}),
]


class Follower(threading.Thread):
    """Follows a job to its end over a WebSocket, reconnecting after each break with its last seq."""

    def __init__(self, api: Api, job_id: str) -> None:
        super().__init__(daemon=True)
        self.events: list[dict[str, Any]] = []
        self.codes: Counter[int | None] = Counter()
        self.heard = time.monotonic()
        self._url = f"{api.url.replace('http', 'ws')}/jobs/{job_id}/events"

    def run(self) -> None:
        while not self.events or self.events[-1]["type"] not in ("succeeded", "failed", "canceled"):
            with contextlib.suppress(OSError, ConnectionClosed, TimeoutError, Exception):
                self._listen()
            time.sleep(0.1)

    def _listen(self) -> None:
        after = self.events[-1]["seq"] if self.events else 0
        with connect(f"{self._url}?after={after}", proxy=None) as stream:
            try:
                for message in stream:
                    self.events.append(json.loads(message))
                    self.heard = time.monotonic()
            finally:
                self.codes[stream.close_code] += 1


def outage(site: Site, kind: str) -> Callable[[], None]:
    """Make Redis unreachable; call the result to end that."""
    if kind == "stopped":
        site.valkey.end(signal.SIGTERM)
        return site.valkey.start
    if kind == "killed":
        site.valkey.end()
        return site.valkey.start
    if kind == "frozen":
        site.valkey.send(signal.SIGSTOP)
        return lambda: site.valkey.send(signal.SIGCONT)
    if kind == "silent":
        site.proxy.silent = True
        return lambda: setattr(site.proxy, "silent", False)
    site.proxy.refusing = True
    site.proxy.cut()
    return lambda: setattr(site.proxy, "refusing", False)


class Crowd:
    """Clients whose connections are open already, so that opening them is not measured."""

    def __init__(self, api: Api, clients: int, stack: ExitStack) -> None:
        self._clients = [stack.enter_context(api.client()) for _ in range(clients)]
        self._pool = stack.enter_context(ThreadPoolExecutor(clients))
        self.overhead()

    def overhead(self) -> float:
        """Seconds that the slowest of them waits for an answer that needs no Redis, all at once."""

        def ask(client: httpx.Client) -> float:
            started = time.monotonic()
            assert client.get("/healthz").status_code == 200
            return time.monotonic() - started

        return max(self._pool.map(ask, self._clients))

    def ask(self, job_id: str) -> list[tuple[int, float]]:
        """(status, seconds) of every kind of request, all at once, without those that waited for their pictures.

        The seconds are those beyond what the machine, however busy, takes for as many requests that need no Redis.
        """

        def ask(number: int, client: httpx.Client) -> tuple[httpx.Response, float]:
            started = time.monotonic()
            answer = REQUESTS[number % len(REQUESTS)](client, job_id)
            took = time.monotonic() - started
            assert answer.is_success or answer.headers["content-type"].startswith("application/")
            return answer, took

        before = self.overhead()
        answers = list(self._pool.map(ask, range(len(self._clients)), self._clients))
        overhead = max(before, self.overhead())
        return [(answer.status_code, max(0.0, took - overhead)) for answer, took in answers if not _waited(answer)]


def _waited(answer: httpx.Response) -> bool:
    """Whether the job of a request was accepted, so that the answer came at its end."""
    return answer.request.url.path.startswith("/v1/images") and "location" in answer.headers


FULL = pytest.mark.faults


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        ("killed", 3.0),
        pytest.param("stopped", 30.0, marks=FULL),
        pytest.param("frozen", 30.0, marks=FULL),
        pytest.param("silent", 30.0, marks=FULL),
        pytest.param("cut", 30.0, marks=FULL),
    ],
)
def test_an_outage_is_answered_in_time_and_service_resumes_after_it(
    kind: str, seconds: float, site: Site, report: Callable[..., None]
) -> None:
    """rq#998, ComfyUI#9393: 503 within two seconds, no hang, no 500; then streams and cancels work again."""
    harness, api = site.harness, site.api
    turn = 0.02 if seconds < 10 else 0.05
    harness.worker("fake", seconds=turn, lease=10.0)
    site.ready()
    running = harness.submit(steps=int((seconds + 2) / turn), sampler="ddpm", label=1, seed=3)
    waiting = harness.submit(model="nobody")
    follower = Follower(api, running)
    follower.start()
    site.until(lambda: harness.running(running), "the job to run")
    answers: list[tuple[int, float]] = []
    health = []
    with ExitStack() as stack:
        crowd = Crowd(api, 90, stack)
        own = stack.enter_context(api.client())
        back = outage(site, kind)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answers += crowd.ask(running)
            started = time.monotonic()
            assert own.get("/healthz").status_code == 200
            health.append(time.monotonic() - started)
        back()
    returned = time.monotonic()
    ready = site.until(
        lambda: httpx.get(f"{api.url}/readyz", trust_env=False, verify=False).status_code == 200, "readiness"
    )
    site.until(lambda: follower.heard > returned, "the stream to go on")
    stream = follower.heard - returned
    report(
        kind=kind,
        outage_seconds=seconds,
        answers=len(answers),
        statuses=dict(Counter(code for code, _ in answers)),
        slowest_answer_seconds=round(max(took for _, took in answers), 2),
        slowest_health_seconds=round(max(health), 3),
        ready_after_seconds=round(ready, 2),
        stream_after_seconds=round(stream, 2),
    )
    assert {code for code, _ in answers} == {503}
    assert max(took for _, took in answers) < API_SECONDS
    assert max(ready, stream) < 10.0
    with api.client() as client:
        victim = client.post("/generate", json={"model": "fake", "steps": 1000}).json()["id"]
        site.until(lambda: harness.running(victim), "a new job to run")
        assert client.delete(f"/jobs/{victim}").json()["status"] == "canceled"
        made = harness.client.get(f"denoised:worker:{harness.store.workers.live()[0].name}")
        assert made is not None
        assert client.post("/generate", json=BODY, headers={"Prefer": "wait=60"}).json()["status"] == "succeeded"
    assert harness.finished(running).status == "succeeded"
    assert harness.job(waiting).status == "queued"
    follower.join(60)
    check_events(harness.events(running))
    assert [event["seq"] for event in follower.events] == [event["seq"] for event in harness.events(running)]
    assert harness.workers[0].exit_code() is None


def test_a_worker_survives_an_outage_while_it_releases_an_expired_lease(site: Site) -> None:
    """RQ delivers its own job to it again; the release of the earlier delivery does not arrive."""
    harness = site.harness
    worker = harness.worker("fake", seconds=0.1)  # so that no write of a turn fails first
    job = harness.submit(steps=20)
    harness.until(lambda: harness.running(job), "the job to run")
    site.proxy.breaking_at = b"ZREM"
    harness.rq_queue("fake").push_job_id(job)
    harness.until(lambda: site.proxy.refusing, "the worker to release the lease")
    harness.until(lambda: "delivery not settled" in harness.log(), "the worker to notice")
    site.proxy.refusing = False
    record = harness.finished(job)
    assert (record.status, record.attempt) == ("succeeded", 2)
    check_events(harness.events(job))
    harness.until(lambda: harness.forgotten(job), "RQ to forget the job")
    assert worker.exit_code() is None


@FULL
def test_dead_connections_are_given_up_in_time(site: Site, report: Callable[..., None]) -> None:
    """ComfyUI#9393: they stay open, but nothing passes any more; new ones work at once."""
    harness, api = site.harness, site.api
    harness.worker("fake", seconds=0.02)
    site.ready()
    done = harness.submit()
    assert harness.finished(done).status == "succeeded"
    with ExitStack() as stack:
        crowd = Crowd(api, 30, stack)
        crowd.ask(done)  # has the API connect
        running = harness.submit(steps=1000, sampler="ddpm", seed=4)
        follower = Follower(api, running)
        follower.start()
        site.until(lambda: len(follower.events) > 10, "events")
        connections = site.proxy.forget()
        lost = time.monotonic()
        answers = [answer for _ in range(3) for answer in crowd.ask(done)]
        client = stack.enter_context(api.client())
        site.until(lambda: client.get("/readyz").status_code == 200, "readiness")
        ready = time.monotonic() - lost
        site.until(lambda: follower.heard > lost + 2.0, "the stream to go on")
        stream = follower.heard - lost
        victim = client.post("/generate", json={"model": "fake", "steps": 1000}).json()["id"]
        site.until(lambda: harness.running(victim), "a new job to run")
        new = time.monotonic() - lost
        assert client.delete(f"/jobs/{victim}").json()["status"] == "canceled"
        client.delete(f"/jobs/{running}")
    slowest = max(took for _, took in answers)
    report(
        connections=connections,
        statuses=dict(Counter(code for code, _ in answers)),
        slowest_answer_seconds=round(slowest, 2),
        ready_after_seconds=round(ready, 2),
        stream_after_seconds=round(stream, 2),
        new_job_after_seconds=round(new, 2),
    )
    assert slowest < API_SECONDS
    assert max(ready, stream, new) < 10.0
    follower.join(60)
    check_events(follower.events)
    assert [event["seq"] for event in follower.events] == [event["seq"] for event in harness.events(running)]


@FULL
@pytest.mark.parametrize("delay", [0.05, 0.3, 0.6])
def test_a_slow_redis_is_answered_in_time(delay: float, site: Site, report: Callable[..., None]) -> None:
    """Each reply comes in time, but all round trips of a request together would take many seconds."""
    harness, api = site.harness, site.api
    harness.worker("fake", seconds=0.005)
    site.ready()
    job = harness.submit()
    assert harness.finished(job).status == "succeeded"
    with ExitStack() as stack:
        crowd = Crowd(api, 30, stack)
        site.proxy.delay = delay
        answers = [answer for _ in range(5) for answer in crowd.ask(job)]
        site.proxy.delay = 0.0
    slowest = max(took for _, took in answers)
    statuses = Counter(code for code, _ in answers)
    report(delay=delay, statuses=dict(statuses), slowest_answer_seconds=round(slowest, 2))
    assert set(statuses) <= {200, 202, 204, 404, 409, 503}
    assert slowest < API_SECONDS
    site.until(
        lambda: httpx.get(f"{api.url}/readyz", trust_env=False, verify=False).status_code == 200,
        "readiness",
        seconds=10,
    )
    with api.client() as client:
        assert client.post("/generate", json=BODY, headers={"Prefer": "wait=60"}).json()["status"] == "succeeded"


@FULL
def test_a_slow_redis_costs_no_worker_its_jobs(site: Site, report: Callable[..., None]) -> None:
    """A round trip of 0.1 s and forty jobs: one by one, their leases could not be renewed in time."""
    harness = site.harness
    for _ in range(2):
        harness.worker("fake", seconds=0.05, lease=2.0)
    jobs = [harness.submit(steps=300, seed=seed) for seed in range(40)]
    site.until(lambda: all(harness.job(job_id).status == "running" for job_id in jobs), "all to run")
    site.proxy.delay = 0.05
    time.sleep(15.0)
    records = [harness.job(job_id) for job_id in jobs]
    site.proxy.delay = 0.0
    report(jobs=len(jobs), lost=sum(record.losses > 0 or record.attempt > 1 for record in records))
    assert {(record.attempt, record.losses) for record in records} == {(1, 0)}
    assert {harness.finished(job_id).status for job_id in jobs} == {"succeeded"}


@FULL
@pytest.mark.parametrize("kind", ["killed", "frozen", "cut"])
def test_a_worker_stops_in_time_during_an_outage(kind: str, site: Site, report: Callable[..., None]) -> None:
    """Nothing can be requeued then: the lease expires, and another worker continues from the resume point."""
    harness = site.harness
    worker = harness.worker("fake", seconds=0.02, lease=3.0)
    jobs = [harness.submit(steps=1000, sampler="ddpm", seed=seed) for seed in range(4)]
    for job_id in jobs:
        harness.until(lambda job_id=job_id: harness.running(job_id), "all to run")  # type: ignore[misc]
    time.sleep(2.0)
    back = outage(site, kind)
    time.sleep(5.0)
    worker.signal(signal.SIGTERM)
    started = time.monotonic()
    code, took = worker.wait(), time.monotonic() - started
    back()
    site.until(site.answers, "Valkey")
    harness.worker("fake", lease=3.0)
    ended = {harness.finished(job_id).status for job_id in jobs}
    for job_id in jobs:
        check_events(harness.events(job_id))
    report(kind=kind, exit_code=code, exit_after_seconds=round(took, 2), ended=sorted(ended))
    assert (code, ended) == (0, {"succeeded"})
    assert took < 10.0


@FULL
@pytest.mark.parametrize("seconds", [5.0, 60.0])
def test_slow_connections_that_keep_breaking_lose_nothing(
    seconds: float, site: Site, report: Callable[..., None]
) -> None:
    """Each piece 5 … 40 ms late, all connections cut three times a second; what was acknowledged is done, once."""
    harness, api, chance = site.harness, site.api, random.Random(1)
    for _ in range(2):
        harness.worker("fake", seconds=0.005, lease=3.0)
    site.ready()
    acknowledged: list[str] = []
    answers: Counter[int] = Counter()
    slowest = [0.0]
    over = threading.Event()

    def post(seed: int) -> None:
        with api.client() as client:
            while not over.is_set():
                seed += 1000
                started = time.monotonic()
                answer = client.post("/generate", json={**BODY, "steps": 20, "seed": seed})
                slowest[0] = max(slowest[0], time.monotonic() - started)
                answers[answer.status_code] += 1
                if answer.status_code == 202:
                    acknowledged.append(answer.json()["id"])
                time.sleep(0.05)

    with ThreadPoolExecutor(4) as pool:
        posting = [pool.submit(post, seed) for seed in range(4)]
        end, cuts = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            site.proxy.delay = chance.uniform(0.005, 0.04)
            time.sleep(0.33)
            cuts += site.proxy.cut()
        over.set()
        for each in posting:
            each.result()
    site.proxy.delay = 0.0
    ended = Counter(harness.finished(job_id).status for job_id in acknowledged)
    for job_id in acknowledged:
        check_events(harness.events(job_id))
    report(
        seconds=seconds,
        connections_cut=cuts,
        answers=dict(answers),
        slowest_answer_seconds=round(slowest[0], 2),
        acknowledged=len(acknowledged),
        ended=dict(ended),
    )
    assert set(answers) <= {202, 503}
    assert slowest[0] < API_SECONDS
    assert set(ended) == {"succeeded"}
    assert all(worker.exit_code() is None for worker in harness.workers)


@FULL
def test_at_maxmemory_new_jobs_are_refused_and_accepted_ones_end(site: Site, report: Callable[..., None]) -> None:
    """rq#1280: 507 while there still is memory for what was accepted; all of that is known, and ends."""
    harness, api = site.harness, site.api
    worker = harness.worker("fake", seconds=0.01, lease=3.0)
    site.ready()
    worker.signal(signal.SIGSTOP)
    used = int(harness.client.info("memory")["used_memory"])
    harness.client.config_set("maxmemory", str(int(used * 2)))
    accepted: list[str] = []
    with api.client() as client:
        while (answer := client.post("/generate", json={**BODY, "n": 4, "preview_every": 5})).status_code == 202:
            accepted.append(answer.json()["id"])
            assert len(accepted) < 5000
        assert answer.status_code in (429, 507)
        assert answer.status_code == 507
        assert answer.headers["content-type"] == "application/problem+json"
        worker.signal(signal.SIGCONT)
        assert {client.get(f"/jobs/{job_id}").status_code for job_id in accepted} == {200}
        assert {harness.finished(job_id).status for job_id in accepted} == {"succeeded"}
        report(accepted=len(accepted), known=len(accepted))
        assert len(accepted) > 20
        harness.client.config_set("maxmemory", "1")
        for request in (REQUESTS[0], REQUESTS[1]):
            assert request(client, accepted[0]).status_code == 507
        assert client.get(f"/jobs/{accepted[0]}").json()["status"] == "succeeded"
        harness.client.config_set("maxmemory", "0")
        assert client.post("/generate", json=BODY, headers={"Prefer": "wait=60"}).json()["status"] == "succeeded"
