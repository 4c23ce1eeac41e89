"""`GET /workers`: queues and workers in numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import redis
from starlette.testclient import TestClient

from denoised.app.admission.catalog import Catalog
from denoised.app.routes.workers import FleetObject
from denoised.app.services import Services
from denoised.jobs.worker_report import Counters, WorkerReport

MakeClient = Callable[..., TestClient]


def test_queues_and_workers_are_reported(api: TestClient, fake_worker: Any, card_of: Any) -> None:
    counted = Counters(evaluations=640, turns=40, turn_seconds=2.5, jobs=3, queue_seconds=0.5)
    cards = [card_of().model_dump(), card_of(name="hats").model_dump()]
    report = WorkerReport("worker-1", cards, 16, 5, 77, 250.0, counters=asdict(counted), reported_at=1234.5)
    fake_worker.store.workers.report(report, ttl=600)
    for guided in (1.0, 2.0):
        api.post("/generate", json={"label": 0, "steps": 10, "guidance_scale": guided})
    answer = api.get("/workers")
    fleet = FleetObject.model_validate(answer.json(), strict=True).model_dump()
    assert fleet["waiting"] == [
        {"model": "hats", "jobs": 0, "evaluations": 0},
        {"model": "shoes", "jobs": 2, "evaluations": 30},
    ]
    (worker,) = fleet["workers"]
    assert worker == {
        "name": "worker-1",
        "device": "",
        "models": ["shoes", "hats"],
        "states": [],
        "reported_at": 1234.5,
        "max_batch": 16,
        "trajectories": 5,
        "pending_evaluations": 77,
        **asdict(counted),
    }


def test_an_unserved_model_is_listed_while_jobs_wait_for_it(
    api: TestClient, services: Services, fake_worker: Any
) -> None:
    api.post("/generate", json={"steps": 10})
    fake_worker.store.workers.remove("worker-1")
    services.catalog = Catalog(services.store)  # without the cached report of the worker
    assert api.get("/workers").json()["waiting"] == [{"model": "shoes", "jobs": 1, "evaluations": 10}]
    assert api.get("/workers").json()["workers"] == []


def test_workers_need_a_key(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    api = make_client(keys=("secret",))
    assert api.get("/workers").status_code == 200
    assert api.get("/workers", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_the_time_is_that_of_redis_whatever_clock_the_front_end_has(
    api: TestClient, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates come from its differences with `reported_at`, which is by Redis' clock."""
    (before, _), real = client.time(), time.time
    monkeypatch.setattr("time.time", lambda: real() + 3600.0)
    at = api.get("/workers").json()["at"]
    assert before <= at <= client.time()[0] + 1
