"""The service under overload: estimates, refusals, listeners that never read, hours of use.

`make test-faults` runs these; DENOISED_OVERLOAD_SECONDS and DENOISED_SOAK_MINUTES say for how long (60 s, 2 min;
`make soak`: 30 min). Each prints what it measured."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from websockets.sync.client import connect

from tests.journeys.conftest import GARMENTS

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at processes through /proc (Linux)"),
]

TIMEOUT = 300.0
OVERLOAD_SECONDS = float(os.environ.get("DENOISED_OVERLOAD_SECONDS", "60"))
STANDSTILL = 60.0  # seconds in which no job changes
EXPIRY = 30.0  # seconds; results live for five
SOAK_SECONDS = 60 * float(os.environ.get("DENOISED_SOAK_MINUTES", "2"))


def tell(**figures: object) -> None:
    """Print measurements; `pytest -s` shows them."""
    print(json.dumps(figures))  # noqa: T201


def until(condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)


def process(service: Any, words: str) -> int:
    """The id of the child process whose command line contains these words."""
    (pid,) = [pid for pid, command in service.children().items() if words in command]
    return int(pid)


def resident(pid: int) -> float:
    """Anonymous memory in MiB."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


def ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job when it is over."""
    end = time.monotonic() + TIMEOUT
    while True:
        job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
        if job["status"] in ("succeeded", "failed", "canceled"):
            return job
        assert time.monotonic() < end, job
        time.sleep(0.2)


# Estimates


def _mixed(chance: random.Random) -> dict[str, Any]:
    return {
        **GARMENTS,
        "steps": chance.choice([5, 10, 20, 20, 50, 100]),
        "n": chance.choice([1, 1, 1, 2, 4]),
        "label": chance.choice([None, 0, 5]),
        "sampler": chance.choice(["ddim", "dpmpp_2m", "heun"]),
        "seed": chance.randrange(1000),
    }


def test_estimates_are_accurate(service: Any) -> None:
    """The median error of the `eta_seconds` in the response to a POST is at most 30 %."""
    errors = {"eight_clients": _steady(service, 8, 40), "sixty_at_once": _burst(service, 60)}
    for load, found in errors.items():
        tell(load=load, jobs=len(found), median_error=statistics.median(found), worst=max(found))
    assert max(statistics.median(found) for found in errors.values()) <= 0.3


def _error(accepted: dict[str, Any], job: dict[str, Any]) -> float:
    took = job["finished_at"] - job["created_at"]
    return abs(float(accepted["eta_seconds"]) - took) / took


def _steady(service: Any, clients: int, seconds: float) -> list[float]:
    """Relative errors while each client posts its next job when its last is done."""
    end = time.monotonic() + seconds

    def serve_one(number: int) -> list[float]:
        chance, found = random.Random(number), []
        with service.client() as client:
            while time.monotonic() < end:
                accepted = client.post("/generate", json=_mixed(chance)).json()
                job = ended(client, accepted["id"])
                if accepted["eta_seconds"] is not None:
                    found.append(_error(accepted, job))
        return found

    with ThreadPoolExecutor(clients) as pool:
        return [error for found in pool.map(serve_one, range(clients)) for error in found]


def _burst(service: Any, count: int) -> list[float]:
    """Relative errors of the estimates once all jobs have been posted."""
    chance = random.Random(count)
    with service.client() as client:
        ids = [client.post("/generate", json=_mixed(chance)).json()["id"] for _ in range(count)]
        seen = time.time()
        estimates = {job_id: client.get(f"/jobs/{job_id}").json() for job_id in ids}
        found = []
        for job_id in ids:
            job = ended(client, job_id)
            if estimates[job_id]["eta_seconds"]:
                took = job["finished_at"] - seen
                found.append(abs(estimates[job_id]["eta_seconds"] - took) / took)
        return found


# Overload


def test_ten_times_the_capacity_is_refused_with_429(start_service: Callable[..., Any], tmp_path: Path) -> None:
    """pytorch/serve#2764, ray#22670: only 202 and 429, every accepted job finishes, /healthz answers in 100 ms.

    Those without the time in which its processes wait for a core: other programs may take these.
    """
    service = start_service(tmp_path / "data", environment={"DENOISED_QUEUE_LIMIT": "2000"})
    body = {**GARMENTS, "steps": 20, "label": None}
    with service.client() as client:
        rate = 10 * _capacity(client, body)
        with _watched_health(service) as health:
            statuses, accepted, waits = _crowd(service, body, rate, OVERLOAD_SECONDS)
        outcomes = [ended(client, job_id)["status"] for job_id in accepted]
    p99, answered = (_percentile(values, 0.99) for values in zip(*health, strict=True))
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    tell(posts_per_second=rate, statuses=counts, finished=len(outcomes))
    tell(healthz_p99_ms=1000 * p99, without_waits_ms=1000 * answered, probes=len(health))
    tell(retry_after=(min(waits), statistics.median(waits), max(waits)))
    assert set(counts) == {202, 429}
    assert set(outcomes) == {"succeeded"}
    assert answered <= 0.1
    assert service.stop() == 0


def _capacity(client: httpx.Client, body: dict[str, Any]) -> float:
    """Jobs a second with a full batch."""
    ids = [client.post("/generate", json=body).json()["id"] for _ in range(64)]
    jobs = [ended(client, job_id) for job_id in ids]
    return len(jobs) / (max(job["finished_at"] for job in jobs) - min(job["created_at"] for job in jobs))


# In a process of its own: in this one, the threads that post would delay it. The second number of `schedstat` is the
# time in nanoseconds that the main thread has waited for a core.
PROBE = """
import json, pathlib, select, sys, time
import httpx

def waited():
    texts = (pathlib.Path(f"/proc/{pid}/schedstat").read_text() for pid in (sys.argv[2], "self"))
    return sum(int(text.split()[1]) for text in texts) / 1e9

took = []
with httpx.Client(base_url=sys.argv[1], timeout=300, trust_env=False) as client:
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        before, started = waited(), time.perf_counter()
        assert client.get("/healthz").status_code == 200
        seconds = time.perf_counter() - started
        took.append((seconds, max(0.0, seconds - (waited() - before))))
print(json.dumps(took))
"""


@contextlib.contextmanager
def _watched_health(service: Any) -> Iterator[list[tuple[float, float]]]:
    """The seconds that /healthz takes every 50 ms, and the same without the time in which the event loop or the probe
    waits for a core. The list is filled when the context ends."""
    took: list[tuple[float, float]] = []
    command = [sys.executable, "-c", PROBE, service.url, str(process(service, "app api"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as probe:
        yield took
        output, _ = probe.communicate(timeout=TIMEOUT)  # closes its input, which ends it
    took.extend(json.loads(output))


def _percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[int(len(values) * part)]


def _crowd(service: Any, body: dict[str, Any], rate: float, seconds: float) -> tuple[list[int], list[str], list[int]]:
    """Statuses, accepted jobs and Retry-After of posts at a steady rate."""
    statuses: list[int] = []
    accepted: list[str] = []
    waits: list[int] = []
    started = time.monotonic()
    numbers = iter(range(int(rate * seconds)))
    turn = threading.Lock()

    def push() -> None:
        with service.client() as client:
            while True:
                with turn:
                    number = next(numbers, None)
                if number is None:
                    return
                time.sleep(max(0.0, started + number / rate - time.monotonic()))
                answer = client.post("/generate", json=body)
                statuses.append(answer.status_code)
                if answer.status_code == 202:
                    accepted.append(answer.json()["id"])
                elif answer.status_code == 429:
                    waits.append(int(answer.headers["retry-after"]))

    with ThreadPoolExecutor(16) as pool:
        for pushing in [pool.submit(push) for _ in range(16)]:
            pushing.result()
    return statuses, accepted, waits


def test_a_client_that_waits_for_retry_after_is_accepted(start_service: Callable[..., Any], tmp_path: Path) -> None:
    """The queue has room after the seconds in Retry-After."""
    service = start_service(tmp_path / "data", environment={"DENOISED_QUEUE_LIMIT": "600"})
    taken = []
    with service.client() as client:
        _capacity(client, {**GARMENTS, "steps": 5})
        for _ in range(5):
            while (answer := client.post("/generate", json={**GARMENTS, "steps": 50})).status_code == 202:
                pass
            time.sleep(int(answer.headers["retry-after"]))
            taken.append(client.post("/generate", json={**GARMENTS, "steps": 50}).status_code == 202)
    tell(taken=taken)
    assert sum(taken) >= 4
    assert service.stop() == 0


# Listeners


def test_listeners_that_never_read_cost_almost_nothing(start_service: Callable[..., Any], tmp_path: Path) -> None:
    """ComfyUI#9393: fifty of them, while every step of every job sends a frame."""
    service = start_service(tmp_path / "data")
    api = process(service, "app api")
    rates: dict[int, list[float]] = {0: [], 50: []}
    with service.client() as client:
        _work(client)
        before = resident(api)
        for _ in range(4):
            for count in (0, 50):
                rates[count].append(_work(client, service, count))
        grown = resident(api) - before
    lost = 1 - statistics.median(rates[50]) / statistics.median(rates[0])
    tell(evaluations_per_second=rates, lost=lost, grown_mib=grown)
    assert lost <= 0.03
    assert grown <= 50
    assert service.stop() == 0


def _work(client: httpx.Client, service: Any = None, listeners: int = 0, seconds: float = 8.0) -> float:
    """Evaluations per second of sixteen jobs with all their frames, some with listeners that never read.

    Counted from when the listeners' buffers are full: until then their connections take in events.
    """
    body = {
        "model": "fashion-mnist",
        "steps": 1000,
        "preview_every": 1,
        "preview": "both",
        "sampler": "ddim",
        "label": None,
    }
    with contextlib.ExitStack() as stack:
        jobs = [client.post("/generate", json=body).json() for _ in range(16)]
        for k in range(listeners):
            stack.enter_context(_deaf(service, jobs[k % 16]["links"]["events"], socketlike=k % 2 == 0))
        time.sleep(6)
        started, before = time.monotonic(), _evaluations(client)
        time.sleep(seconds)
        rate = (_evaluations(client) - before) / (time.monotonic() - started)
        for job in jobs:
            assert client.delete(f"/jobs/{job['id']}").json()["status"] == "canceled"
    return rate


def _evaluations(client: httpx.Client) -> int:
    """Of the newest sixteen jobs together."""
    jobs = client.get("/jobs", params={"limit": 16}).json()["jobs"]
    return sum(int(job["timing"]["evaluations"]) for job in jobs)


@contextlib.contextmanager
def _deaf(service: Any, path: str, *, socketlike: bool) -> Iterator[None]:
    """A WebSocket or an event stream that is opened with a small buffer and never read."""
    host, port = service.url.removeprefix("http://").split(":")
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{upgrade if socketlike else ''}\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect((host, int(port)))
        connection.sendall(head.encode())
        yield


# Hours


def test_after_hours_of_mixed_work_resources_are_as_before(start_service: Callable[..., Any], tmp_path: Path) -> None:
    """A1111#13871, starlette#2766: work of every kind, cancels, clients that vanish; then memory, descriptors,
    threads and Redis keys are back where they were after a first round, in which every batch size occurred."""
    service = start_service(tmp_path / "data", environment={"DENOISED_RESULT_TTL": "5", "DENOISED_MAX_WAIT": "2"})
    store = redis.Redis(unix_socket_path=str(tmp_path / "data" / "valkey.sock"))
    jobs = _soak(service, min(360.0, SOAK_SECONDS))
    before = _held(service, store)
    jobs += _soak(service, SOAK_SECONDS)
    after = _held(service, store)
    tell(seconds=SOAK_SECONDS, jobs=jobs, before=before, after=after)
    for name, held in before.items():
        if name.endswith("_mib"):
            assert after[name] <= held * 1.1 + 10, name
        elif name == "connections":
            assert after[name] <= 64
        else:
            assert after[name] <= held + 2, name
    lines = service.log.read_text().splitlines()
    assert not [line for line in lines if '"exception"' in line]
    assert service.stop() == 0


def _held(service: Any, store: redis.Redis) -> dict[str, float]:
    """What the service holds once all jobs are done and their results have expired."""
    _wait_for_last_jobs(store)
    with service.client() as client:
        until(lambda: client.get("/jobs").json()["jobs"] == [], "the list of jobs to be empty", 5)
    time.sleep(3)
    found: dict[str, float] = {}
    for words in ("denoised.app api", "-m denoised.worker"):
        pid, name = process(service, words), words.split()[-1]
        found[f"{name}_mib"] = round(resident(pid), 1)
        found[f"{name}_descriptors"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        found[f"{name}_threads"] = len(list(Path(f"/proc/{pid}/task").iterdir()))
    # Connections to Redis are kept, as many as were ever needed at one moment.
    found["connections"] = float(store.info("clients")["connected_clients"])  # type: ignore[index]
    found["api_descriptors"] -= found["connections"]
    found["store_mib"] = round(int(store.info("memory")["used_memory"]) / 2**20, 2)  # type: ignore[index, arg-type]
    found["keys"] = float(store.dbsize())  # type: ignore[arg-type]
    return found


def _wait_for_last_jobs(store: redis.Redis) -> None:
    """Wait until all jobs are over, as long as a busy machine needs, and then until their results have expired."""
    seen, since = _unfinished(store), time.monotonic()
    while seen:
        time.sleep(0.5)
        if (now := _unfinished(store)) != seen:
            seen, since = now, time.monotonic()
        assert time.monotonic() - since < STANDSTILL, f"these jobs stand still: {seen}\n{_queues(store)}"
    end = time.monotonic() + EXPIRY
    while left := _records(store):
        assert time.monotonic() < end, f"these jobs are over and have not expired (TTL in s): {left}"
        time.sleep(0.1)


def _records(store: redis.Redis) -> dict[str, tuple[str, str, str, int]]:
    """Status, attempt, evaluations and time to live of every record, by id."""
    found = {}
    for key in store.scan_iter("denoised:job:*", count=1000, _type="hash"):
        fields: Any = store.hmget(key, "status", "attempt", "evaluations")
        status, attempt, evaluations = (str((each or b"").decode()) for each in fields)
        left: Any = store.ttl(key)
        found[key.decode().rpartition(":")[2]] = (status, attempt, evaluations, int(left))
    return found


def _unfinished(store: redis.Redis) -> dict[str, tuple[str, str, str, int]]:
    return {job: state for job, state in _records(store).items() if state[0] in ("queued", "running")}


def _queues(store: redis.Redis) -> dict[str, object]:
    """Where RQ has jobs: one that is in none of these is lost."""
    found: dict[str, object] = {}
    for key in store.scan_iter("rq:*", count=1000):
        kind = store.type(key)
        if kind == b"list":
            found[key.decode()] = store.lrange(key, 0, -1)
        elif kind == b"zset":
            found[key.decode()] = store.zrange(key, 0, -1, withscores=True)
    return found


def _soak(service: Any, seconds: float) -> int:
    """Mixed work of eight clients; returns how many jobs there were."""
    end = time.monotonic() + seconds

    def use(number: int) -> int:
        chance, count = random.Random(number * 1000 + int(seconds)), 0
        ways = (_waits, _listens, _reads_and_vanishes, _cancels, _asks_for_a_picture_and_leaves, _is_wrong)
        while time.monotonic() < end:
            with service.client() as client:
                count += chance.choice(ways)(client, service, chance)
        return count

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(use, range(8)))


def _body(chance: random.Random) -> dict[str, Any]:
    kinds = {"model": ["fashion-mnist", "digits"], "preview_every": [0, 0, 5], "format": ["png", "webp"]}
    return {**_mixed(chance), **{name: chance.choice(values) for name, values in kinds.items()}}


def _waits(client: httpx.Client, service: Any, chance: random.Random) -> int:
    job = client.post("/generate", json=_body(chance), headers={"Prefer": "wait=30"}).json()
    for image in job["images"]:
        assert client.get(image["url"]).status_code in (200, 404)  # 404: it has expired
    return 1


def _listens(client: httpx.Client, service: Any, chance: random.Random) -> int:
    with connect(f"{service.url.replace('http', 'ws')}/generate", open_timeout=TIMEOUT) as events:
        events.send(json.dumps(_body(chance)))
        kinds = [json.loads(event)["type"] for event in events]
    assert kinds[-1] == "succeeded"
    return 1


def _reads_and_vanishes(client: httpx.Client, service: Any, chance: random.Random) -> int:
    job = client.post("/generate", json=_body(chance)).json()
    with client.stream("GET", job["links"]["events"]) as stream:
        for _ in zip(stream.iter_lines(), range(chance.randrange(1, 20)), strict=False):
            pass
    with connect(service.url.replace("http", "ws") + job["links"]["events"], open_timeout=TIMEOUT) as events:
        events.recv()
        events.socket.shutdown(socket.SHUT_RDWR)
    return 1


def _cancels(client: httpx.Client, service: Any, chance: random.Random) -> int:
    job = client.post("/generate", json={**_body(chance), "steps": 500}).json()
    time.sleep(chance.random())
    assert client.delete(f"/jobs/{job['id']}").json()["status"] == "canceled"
    return 1


def _asks_for_a_picture_and_leaves(client: httpx.Client, service: Any, chance: random.Random) -> int:
    body = {**_body(chance), "n": 1, "format": "png", "steps": 300}
    with contextlib.suppress(httpx.ReadTimeout):
        client.post("/generate", json=body, headers={"Accept": "image/png"}, timeout=chance.random())
    return 1


def _is_wrong(client: httpx.Client, service: Any, chance: random.Random) -> int:
    assert client.post("/generate", json={"n": 0}).status_code == 422
    assert client.get("/jobs/nobody/events").status_code == 404
    return 0
