"""Admission behind a long queue: totals per caller instead of all waiting jobs."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any, cast

import pytest
import redis
from starlette.testclient import TestClient

from denoised.app.admission.queue import job_queue
from denoised.app.admission.queue.list_totals import ListTotals, Totals
from denoised.app.admission.queue.queue_snapshot import QueueSnapshot
from denoised.app.admission.queue.queue_totals import CallerTotals, QueueTotals
from denoised.app.admission.queue.totals_reader import ListEnds, TotalsReader
from denoised.app.services import Services
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.redis.memory import Memory
from denoised.jobs.sampling_request import PRIORITIES
from denoised.jobs.store.store import Store
from denoised.jobs.store.waiting_lists import CallerQueue, draw_order
from denoised.jobs.worker_report import WorkerReport

KEYS = ("alice-key-alice-key-alice", "bob-key-bob-key-bob-key")


@pytest.fixture
def record_of(request_of: Any) -> Callable[..., JobRecord]:
    """`record_of(owner=…, reserved=…, **fields)`: a waiting job."""

    def record_of(owner: str = "", reserved: int = 0, weight: float = 1.0, **fields: Any) -> JobRecord:
        return JobRecord(uuid.uuid4().hex, owner, request_of(**fields), 0.0, reserved_bytes=reserved, weight=weight)

    return record_of


@pytest.mark.parametrize("seed", range(3))
def test_totals_are_those_of_the_list_whatever_happens_to_it(
    seed: int, client: redis.Redis, record_of: Callable[..., JobRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs join, are drawn, return to the front, and are canceled anywhere."""
    monkeypatch.setattr("denoised.app.admission.queue.list_totals.DROPPED_AT", 5)
    chance, records = random.Random(seed), dict[str, JobRecord]()
    reader = TotalsReader(client, Store(client), "", lambda ids: {each: records[each] for each in ids})
    known, key, drawn = ListTotals(), "list", list[str]()
    for _ in range(300):
        match chance.choice(["join", "join", "join", "draw", "draw", "return", "cancel"]):
            case "join":
                job = record_of(steps=chance.randint(1, 50), reserved=chance.randint(0, 99))
                records[job.id] = job
                client.rpush(key, job.id)
            case "draw":
                if (popped := client.lpop(key)) is not None:
                    drawn.append(cast(bytes, popped).decode())
            case "return" if drawn:
                client.lpush(key, drawn.pop(chance.randrange(len(drawn))))
            case "cancel" if chance.random() < 0.3 and client.llen(key):
                client.lrem(key, 1, chance.choice(cast("list[bytes]", client.lrange(key, 0, -1))))  # type: ignore[arg-type]
        ids = [each.decode() for each in cast("list[bytes]", client.lrange(key, 0, -1))]
        if ids:
            found = reader._totals(known, ListEnds(key, len(ids), ids[0], ids[-1]))
            assert found == Totals(
                len(ids),
                sum(records[each].request.evaluations for each in ids),
                sum(records[each].reserved_bytes for each in ids),
            )


def test_a_job_that_cannot_be_read_counts_as_one_without_work(record_of: Callable[..., JobRecord]) -> None:
    known, job = ListTotals(), record_of(steps=7)
    known.replace(["damaged", job.id], {job.id: job})
    assert known.between(2, "damaged", job.id) == Totals(2, 7, 0)
    assert not known.extend(["unknown"], {})


def fill(services: Services, records: list[JobRecord]) -> None:
    for record in records:
        services.queue.enqueue(record, QueueEstimate(0, None))


def test_the_limits_hold_behind_a_long_queue(
    make_client: Any, fake_worker: Any, record_of: Callable[..., JobRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_queue, "LONG_QUEUE", 5)
    fake_worker.serve(speed=100.0)
    api: TestClient = make_client(keys=KEYS, max_queue=40, max_queue_per_key=20, queue_limit_per_key=250)
    services: Services = api.app.state.services  # type: ignore[attr-defined]
    alice = services.keys.current.owner(KEYS[0])
    assert alice is not None
    bob = {"Authorization": f"Bearer {KEYS[1]}"}
    fill(services, [record_of(owner=alice, steps=10) for _ in range(18)])
    refused = []
    for steps in (10, 10, 10, 200):
        response = api.post("/generate", json={"steps": steps, "priority": "low"})
        refused.append((response.status_code, response.json().get("quota", {}).get("name")))
    assert refused == [(202, None), (202, None), (429, "jobs_per_key"), (429, "jobs_per_key")]
    assert isinstance(services.queue.view(["shoes"]), QueueTotals)
    for steps, expected in ((10, 202), (300, 429), (10, 202)):  # another key has its own limits
        response = api.post("/generate", json={"steps": steps}, headers=bob)
        assert response.status_code == expected
        if expected == 429:
            assert response.json()["quota"]["name"] == "evaluations_per_key"
            # 60 of its 20 waiting evaluations have to leave; at 100 evaluations a second.
            assert 1 <= int(response.headers["Retry-After"]) <= 3
    fill(services, [record_of(owner="carol") for _ in range(18)])
    response = api.post("/generate", json={}, headers=bob)
    assert (response.status_code, response.json()["quota"]) == (
        429,
        {"name": "jobs", "allowed": 40, "used": 40, "left": 0},
    )


def test_what_redis_sends_for_a_request_does_not_grow_with_the_queue(
    make_client: Any, fake_worker: Any, client: redis.Redis, record_of: Callable[..., JobRecord]
) -> None:
    fake_worker.serve(speed=100.0)
    api: TestClient = make_client(max_queue=10_000, queue_limit=10**9)
    services: Services = api.app.state.services  # type: ignore[attr-defined]

    def sent() -> float:
        """The bytes that Redis sends for a request, in the mean of three."""
        api.post("/generate", json={})
        before = cast("dict[str, Any]", client.info("stats"))["total_net_output_bytes"]
        for _ in range(3):
            assert api.post("/generate", json={}).status_code == 202
        return float((cast("dict[str, Any]", client.info("stats"))["total_net_output_bytes"] - before) / 3)

    fill(services, [record_of() for _ in range(job_queue.LONG_QUEUE + 10)])
    api.post("/generate", json={})
    few = sent()
    fill(services, [record_of() for _ in range(1000)])
    assert sent() < few + 5000  # the ids of 1,000 jobs have 32,000


def test_admission_reads_all_jobs_again_when_the_queue_is_short(
    api: TestClient, services: Services, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_queue, "LONG_QUEUE", 3)
    for _ in range(5):
        api.post("/generate", json={})
    assert isinstance(services.queue.view(["shoes"]), QueueTotals)
    client.ltrim("rq:queue:shoes", 0, 1)
    services.queue.view(["shoes"])
    assert isinstance(services.queue.view(["shoes"]), QueueSnapshot)


def test_estimates_from_totals_are_close_to_those_of_the_simulation(record_of: Callable[..., JobRecord]) -> None:
    chance, errors, misplaced = random.Random(1), list[float](), list[float]()
    report = WorkerReport("w", [{"name": "shoes"}], 16, 0, 0, 1000.0)
    for _ in range(40):
        owners = [f"key{k}" for k in range(chance.randint(1, 12))]
        jobs = [
            record_of(owner=chance.choice(owners), steps=chance.randint(5, 60)) for _ in range(chance.randint(250, 500))
        ]
        callers = [
            CallerQueue(owner, ([], [job for job in jobs if job.owner == owner], []), is_new=False, credit=0.0)
            for owner in owners
        ]
        memory = Memory.of({"used_memory": 0, "maxmemory": 0})
        snapshot = QueueSnapshot(0.0, {"shoes": draw_order(callers)}, {"shoes": []}, memory, queues={"shoes": callers})
        new = record_of(owner=chance.choice([*owners, "new"]), steps=20)
        totals = QueueTotals({"shoes": [_totals(caller) for caller in callers]}, {"shoes": []}, memory, 0.0)
        exact = snapshot.with_job(new).forecast("shoes", [report], {}, until=new.id)
        found = totals.estimate(new, [report])
        assert found.eta_seconds is not None
        assert found.queue_position is not None
        if new.owner != "new":  # one that begins to wait is next, but for others that do
            errors.append(abs(found.eta_seconds / exact.ends[new.id] - 1))
            misplaced.append(abs(found.queue_position - exact.positions[new.id]) / len(jobs))
    assert median(errors) <= 0.25, sorted(errors)
    assert median(misplaced) <= 0.05, sorted(misplaced)


def _totals(caller: CallerQueue) -> CallerTotals:
    lists = tuple(
        Totals(len(jobs), sum(job.request.evaluations for job in jobs), sum(job.reserved_bytes for job in jobs))
        for jobs in caller.lists
    )
    assert len(lists) == len(PRIORITIES)
    return CallerTotals(caller.owner, 1.0, lists)


def test_the_weight_of_a_key_and_the_priority_of_a_job_shorten_its_wait(record_of: Callable[..., JobRecord]) -> None:
    report = WorkerReport("w", [{"name": "shoes"}], 16, 0, 0, 1000.0)
    waiting = Totals(500, 10_000, 0)
    callers = [
        CallerTotals("alice", 1.0, (Totals(), waiting, Totals())),
        CallerTotals("bob", 1.0, (Totals(), waiting, Totals())),
    ]
    totals = QueueTotals({"shoes": callers}, {}, Memory.of({"used_memory": 0, "maxmemory": 0}), 0.0)
    normal = record_of(owner="alice", steps=20)
    heavy, high = replace(normal, weight=4.0), record_of(owner="alice", steps=20, priority="high")
    etas = [totals.estimate(job, [report]) for job in (normal, heavy, high)]
    assert [each.queue_position for each in etas] == [1000, 625, 1]
    assert etas[0].eta_seconds == pytest.approx(20.02)
    assert etas[1].eta_seconds == pytest.approx(12.53)
    assert totals.estimate(normal, []) == QueueEstimate(1000, None)
