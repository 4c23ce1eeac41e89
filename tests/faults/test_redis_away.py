"""Redis gone, silent, slow, cut off or full: the front end says so in time, and nothing that was accepted is lost."""

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
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.faults.site import API_SECONDS, Api, Site
from tests.faults.test_worker_killed import check_events

BODY = {"model": "fake", "steps": 5}
REQUESTS: list[Callable[[httpx.Client, str], httpx.Response]] = [
    lambda client, job: client.post("/generate", json=BODY),
    lambda client, job: client.post("/generate", json=BODY, headers={"Idempotency-Key": "k"}),
    lambda client, job: client.post("/generate", json=BODY, headers={"Prefer": "wait=1"}),
    lambda client, job: client.get(f"/jobs/{job}"),
    lambda client, job: client.get("/jobs"),
    lambda client, job: client.delete(f"/jobs/{job}"),
    lambda client, job: client.get(f"/jobs/{job}/images/0"),
    lambda client, job: client.get(f"/jobs/{job}/animation"),
    lambda client, job: client.get(f"/jobs/{job}/events"),
    lambda client, job: client.get("/readyz"),
    lambda client, job: client.post("/v1/images/generations", json={"prompt": ""}),
]


class Follower(threading.Thread):
    """Listens to a job to its end over a WebSocket, coming back after each break with the last seq it has."""

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
    """Take Redis away; the answer brings it back."""
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


def ask_all(api: Api, job_id: str, clients: int) -> list[tuple[int, float]]:
    """(status, seconds) of every kind of request, asked by so many clients at once."""

    def ask(request: Callable[[httpx.Client, str], httpx.Response]) -> tuple[int, float]:
        with api.client() as client:
            started = time.monotonic()
            answer = request(client, job_id)
            assert answer.headers["content-type"].startswith("application/")
            return answer.status_code, time.monotonic() - started

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(ask, REQUESTS * (clients // len(REQUESTS) + 1)))


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
def test_an_outage_is_told_in_time_and_over_when_it_is_over(
    kind: str, seconds: float, site: Site, told: Callable[..., None]
) -> None:
    """rq#998, ComfyUI#9393: 503 within two seconds, no hang and no 500; then all goes on, streams and cancels too."""
    shop, api = site.shop, site.api
    turn = 0.02 if seconds < 10 else 0.05
    shop.worker("fake", seconds=turn, lease=10.0)
    site.ready()
    running = shop.submit(steps=int((seconds + 2) / turn), sampler="ddpm", label=1, seed=3)
    waiting = shop.submit(model="nobody")
    follower = Follower(api, running)
    follower.start()
    site.until(lambda: shop.running(running), "the job to run")
    back = outage(site, kind)
    end = time.monotonic() + seconds
    answers: list[tuple[int, float]] = []
    health = []
    while time.monotonic() < end:
        answers += ask_all(api, running, clients=90)
        started = time.monotonic()
        assert httpx.get(f"{api.url}/healthz", trust_env=False).status_code == 200
        health.append(time.monotonic() - started)
    back()
    returned = time.monotonic()
    ready = site.until(lambda: httpx.get(f"{api.url}/readyz", trust_env=False).status_code == 200, "readiness")
    site.until(lambda: follower.heard > returned, "the stream to go on")
    stream = follower.heard - returned
    told(
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
        site.until(lambda: shop.running(victim), "a new job to run")
        assert client.delete(f"/jobs/{victim}").json()["status"] == "canceled"
        made = shop.client.get(f"denoised:worker:{shop.store.workers()[0].name}")
        assert made is not None
        assert client.post("/generate", json=BODY, headers={"Prefer": "wait=60"}).json()["status"] == "succeeded"
    assert shop.finished(running).status == "succeeded"
    assert shop.job(waiting).status == "queued"
    follower.join(60)
    check_events(shop.events(running))
    assert [event["seq"] for event in follower.events] == [event["seq"] for event in shop.events(running)]
    assert shop.workers[0].exit_code() is None


@FULL
@pytest.mark.parametrize("seconds", [5.0, 60.0])
def test_connections_that_are_slow_and_cut_all_the_time_lose_nothing(
    seconds: float, site: Site, told: Callable[..., None]
) -> None:
    """Each piece 5 … 40 ms late, all connections cut three times a second; what was acknowledged is done, once."""
    shop, api, chance = site.shop, site.api, random.Random(1)
    for _ in range(2):
        shop.worker("fake", seconds=0.005, lease=3.0)
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
    ended = Counter(shop.finished(job_id).status for job_id in acknowledged)
    for job_id in acknowledged:
        check_events(shop.events(job_id))
    told(
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
    assert all(hand.exit_code() is None for hand in shop.workers)


@FULL
def test_at_maxmemory_new_jobs_are_refused_and_accepted_ones_end(site: Site, told: Callable[..., None]) -> None:
    """rq#1280: 507 while there still is memory for what was accepted; all of that is known, and ends."""
    shop, api = site.shop, site.api
    hand = shop.worker("fake", seconds=0.01, lease=3.0)
    site.ready()
    hand.signal(signal.SIGSTOP)
    used = int(shop.client.info("memory")["used_memory"])
    shop.client.config_set("maxmemory", str(int(used * 1.4)))
    accepted: list[str] = []
    with api.client() as client:
        while (answer := client.post("/generate", json={**BODY, "n": 4, "preview_every": 5})).status_code == 202:
            accepted.append(answer.json()["id"])
            assert len(accepted) < 5000
        assert answer.status_code in (429, 507)
        assert answer.status_code == 507
        assert answer.headers["content-type"] == "application/problem+json"
        hand.signal(signal.SIGCONT)
        assert {client.get(f"/jobs/{job_id}").status_code for job_id in accepted} == {200}
        shop.client.config_set("maxmemory", str(int(used * 4)))
        assert {shop.finished(job_id).status for job_id in accepted} == {"succeeded"}
        told(accepted=len(accepted), known=len(accepted))
        assert len(accepted) > 20
        shop.client.config_set("maxmemory", "1")
        for request in (REQUESTS[0], REQUESTS[1]):
            assert request(client, accepted[0]).status_code == 507
        assert client.get(f"/jobs/{accepted[0]}").json()["status"] == "succeeded"
        shop.client.config_set("maxmemory", "0")
        assert client.post("/generate", json=BODY, headers={"Prefer": "wait=60"}).json()["status"] == "succeeded"
