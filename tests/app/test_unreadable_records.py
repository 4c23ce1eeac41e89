"""Records that this version cannot read: each is left out alone, and the front end answers as without it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from denoised.jobs.store import redis_keys as keys
from denoised.jobs.worker_report import WorkerReport


def report_damaged_workers(fake_worker: Any) -> None:
    """One report that is not JSON, one that requires an unknown field, and one with a card of another version."""
    store = fake_worker.store
    for name in ("torn", "newer", "other-card"):
        fake_worker.serve(name=name)
    store.client.set(keys.worker("torn"), b"no JSON")
    newer = WorkerReport("newer", [{"name": "hats"}], 16, 0, 0, None, requires=["unheard_of"])
    store.workers.report(newer, ttl=600)
    store.workers.report(WorkerReport("other-card", [{"name": "hats", "width": "wide"}], 16, 0, 0, None), ttl=600)


def test_a_damaged_job_breaks_no_listing_no_metric_and_no_queue(api: TestClient, fake_worker: Any) -> None:
    accepted = [api.post("/generate", json={"seed": seed}).json()["id"] for seed in range(3)]
    fake_worker.client.hset(keys.job(accepted[1]), "request", b"\xff no JSON")
    fake_worker.client.hset(keys.JOB_TOTALS, "failed:shoes", "many")
    assert {job["id"] for job in api.get("/jobs").json()["jobs"]} == {accepted[0], accepted[2]}
    assert "denoised_redis_up 1.0" in api.get("/metrics").text
    assert api.get("/workers").status_code == 200
    assert api.get("/readyz").status_code == 200
    assert api.get(f"/jobs/{accepted[2]}").json()["status"] == "queued"
    assert api.post("/generate", json={}).status_code == 202


def test_a_damaged_worker_report_breaks_no_view_of_the_fleet(api: TestClient, fake_worker: Any) -> None:
    report_damaged_workers(fake_worker)
    assert [model["name"] for model in api.get("/models").json()] == ["shoes"]
    assert {worker["name"] for worker in api.get("/workers").json()["workers"]} == {"worker-1", "other-card"}
    assert "denoised_redis_up 1.0" in api.get("/metrics").text
    assert api.get("/readyz").status_code == 200
    assert api.post("/generate", json={}).status_code == 202


def test_the_log_says_which_value_of_a_card_is_wrong(
    api: TestClient, fake_worker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    report_damaged_workers(fake_worker)
    api.get("/models")
    reasons = {record.card: record.reason for record in caplog.records if hasattr(record, "card")}  # type: ignore[attr-defined]
    assert reasons == {"other-card/hats": "width: 'wide' was given (allowed: an integer)"}


def test_a_damaged_event_leaves_the_stream_of_the_others_whole(api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.create()
    attempt = fake_worker.start(job_id)
    fake_worker.client.xadd(keys.events(job_id), {"a": 1, "e": "no JSON"}, id="3-0")
    fake_worker.client.hset(keys.job(job_id), "seq", 3)
    fake_worker.finish(job_id, attempt)
    text = api.get(f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}).text
    events = [json.loads(line.removeprefix("data:")) for line in text.splitlines() if line.startswith("data:")]
    assert [event["seq"] for event in events] == [1, 2, 4, 5]


@pytest.mark.parametrize("path", ["", "/images/0"])
def test_a_damaged_job_asked_for_by_its_id_fails_alone(path: str, api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.succeeded()
    other = fake_worker.succeeded()
    fake_worker.client.hset(keys.job(job_id), "images", b"no JSON")
    answer = api.get(f"/jobs/{job_id}{path}")
    assert answer.status_code == 404
    assert "damaged" in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert api.get(f"/jobs/{other}{path}").status_code == 200
