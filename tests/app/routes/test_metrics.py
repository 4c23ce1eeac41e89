"""`GET /metrics`: correct values, closed label sets, and a response whatever Redis does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from denoised.app.http.api_keys import key_hash

MakeClient = Callable[..., TestClient]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(api: TestClient) -> Samples:
    """(name, labels) → value."""
    answer = api.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"denoised_{name}", tuple(sorted(labels.items()))]


def test_the_queue_is_measured_in_jobs_evaluations_and_age(api: TestClient) -> None:
    assert value(scrape(api), "queue_jobs", model="shoes") == 0
    api.post("/generate", json={"steps": 7, "n": 2})
    api.post("/generate", json={"steps": 3, "label": 0})  # guided: two rows per step
    time.sleep(0.05)
    samples = scrape(api)
    assert value(samples, "queue_jobs", model="shoes") == 2
    assert value(samples, "queue_evaluations", model="shoes") == 14 + 6
    assert 0.05 <= value(samples, "queue_oldest_seconds", model="shoes") < 60


def test_the_queue_drains_at_the_measured_speed(api: TestClient, fake_worker: Any, card_of: Any) -> None:
    api.post("/generate", json={"steps": 7, "n": 2})
    api.post("/generate", json={"steps": 3, "label": 0})  # guided: two rows per step
    assert ("denoised_drain_seconds", (("model", "shoes"),)) not in scrape(api)
    fake_worker.serve(card_of(), name="worker-2", speed=25.0)
    time.sleep(1.1)  # until the cached fleet expires
    assert value(scrape(api), "drain_seconds", model="shoes") == pytest.approx((14 + 6) / 25)


def test_jobs_are_counted_by_status(api: TestClient, fake_worker: Any) -> None:
    ids = [api.post("/generate", json={}).json()["id"] for _ in range(5)]
    fake_worker.finish(ids[0], fake_worker.start(ids[0]))
    fake_worker.finish(ids[1], fake_worker.start(ids[1]))
    for _ in range(3):
        api.delete(f"/jobs/{ids[2]}")
    samples = scrape(api)
    counted = {
        status: value(samples, "jobs_total", model="shoes", status=status)
        for status in ("accepted", "succeeded", "failed", "canceled")
    }
    assert counted == {"accepted": 5, "succeeded": 2, "failed": 0, "canceled": 1}


def test_a_job_that_lost_its_workers_counts_as_failed_once(api: TestClient, fake_worker: Any) -> None:
    job_id = api.post("/generate", json={}).json()["id"]
    for _ in range(6):
        fake_worker.store.attempts.start_alone(job_id, fake_worker.start(job_id), "worker-1")
    assert fake_worker.store.job(job_id).status == "failed"
    assert value(scrape(api), "jobs_total", model="shoes", status="failed") == 1


def test_counters_of_workers_are_summed_and_outlive_them(api: TestClient, fake_worker: Any) -> None:
    done = {"evaluations": 30, "turns": 4, "turn_seconds": 0.5, "images": 15, "slots": 64, "jobs": 2}
    more = {"evaluations": 50, "turns": 6, "turn_seconds": 0.75, "images": 21, "slots": 96, "jobs": 3}
    seen = []
    for worker, counters in (("a", done), ("a", done), ("b", done), ("a", more), ("b", done)):
        fake_worker.store.workers.add_counters(worker, counters)
        seen.append(value(scrape(api), "evaluations_total"))
    assert seen == [30, 30, 60, 80, 80]
    fake_worker.store.workers.remove("a")
    fake_worker.store.workers.add_counters("c", {"evaluations": 1})  # a's successor starts at zero
    samples = scrape(api)
    assert value(samples, "evaluations_total") == 81
    assert value(samples, "turns_total") == 10
    assert value(samples, "turn_seconds_total") == pytest.approx(1.25)
    assert value(samples, "turn_images_total") == 36
    assert value(samples, "turn_slots_total") == 160
    assert value(samples, "jobs_begun_total") == 5
    assert value(samples, "batch_occupancy_ratio") == pytest.approx(36 / 160)


def test_two_api_processes_report_the_same_shared_state(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    one, other = make_client(), make_client()
    one.post("/generate", json={})
    other.post("/generate", json={})
    own = ("denoised_http", "denoised_listeners", "denoised_refusals", "denoised_queue_oldest", "process_", "python_")
    shared = [{key: v for key, v in scrape(api).items() if not key[0].startswith(own)} for api in (one, other)]
    assert shared[0] == shared[1]
    assert shared[0]["denoised_jobs_total", (("model", "shoes"), ("status", "accepted"))] == 2


def test_workers_are_counted_for_each_model_they_serve(api: TestClient, fake_worker: Any, card_of: Any) -> None:
    fake_worker.serve(card_of(), card_of(name="hats"), name="worker-2", speed=25.0)
    time.sleep(1.1)  # until the cached fleet expires
    samples = scrape(api)
    assert value(samples, "workers", model="shoes") == 2
    assert value(samples, "workers", model="hats") == 1
    assert value(samples, "slots") == 32
    assert value(samples, "evaluations_per_second") == 25


def test_a_model_that_is_no_longer_served_is_still_reported(
    make_client: MakeClient, fake_worker: Any, card_of: Any
) -> None:
    """Otherwise no alert could fire."""
    fake_worker.serve(card_of(), card_of(name="hats"))
    fake_worker.store.workers.remove("worker-1")
    assert value(scrape(make_client()), "workers", model="hats") == 0


def test_refusals_are_counted_by_limit(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    full, small = make_client(max_queue=1), make_client(queue_limit=5, max_queue=100)
    key = make_client(keys=("k",), queue_limit_per_key=5)
    assert full.post("/generate", json={}).status_code == 202
    for api, limit in ((full, "jobs"), (small, "evaluations"), (key, "evaluations_per_key")):
        if limit == "evaluations_per_key":
            assert api.post("/generate", json={}).status_code == 202
        assert [api.post("/generate", json={}).status_code for _ in range(2)] == [429, 429]
        counted = {
            name: value(scrape(api), "refusals_total", limit=name)
            for name in ("jobs", "evaluations", "evaluations_per_key")
        }
        assert counted == {**dict.fromkeys(counted, 0.0), limit: 2.0}


def test_latency_is_labeled_by_route_template_method_and_status_class(api: TestClient) -> None:
    for _ in range(3):
        api.get("/jobs/abc")
    api.get("/models")
    samples = scrape(api)
    name = "http_request_seconds_count"
    assert value(samples, name, method="GET", route="/jobs/{job_id}", status="4xx") == 3
    assert value(samples, name, method="GET", route="/models", status="2xx") == 1
    assert value(samples, "http_request_seconds_sum", method="GET", route="/models", status="2xx") > 0
    assert value(samples, "http_requests_in_flight") == 1  # the scrape itself


def test_health_checks_are_counted_apart(api: TestClient) -> None:
    """A probe of a server that waits for its first worker is not an error of the server (`DenoisedErrors`)."""
    for path, times in (("/readyz", 3), ("/healthz", 2)):
        for _ in range(times):
            api.get(path)
    samples = scrape(api)
    assert value(samples, "health_checks_total", route="/readyz", status="2xx") == 3
    assert value(samples, "health_checks_total", route="/healthz", status="2xx") == 2
    assert not [labels for name, labels in samples if "http_request_seconds" in name and "z" in dict(labels)["route"]]


def test_clients_cannot_create_label_values(api: TestClient) -> None:
    """A label value for each path or method would fill the memory of Prometheus."""
    secret = "s3cret"
    for k in range(5):
        api.get(f"/{secret}-{k}")
        api.get(f"/jobs/{secret}-{k}?ticket={secret}")
        api.request(f"{secret}{k}", "/models")
        api.get("/v1/models/" + secret)
        api.post("/generate", json={"model": secret})
        api.get("/models", headers={"Host": secret})
    text = api.get("/metrics").text
    assert secret not in text
    samples = scrape(api)
    assert value(samples, "http_request_seconds_count", method="GET", route="unmatched", status="4xx") == 10
    assert value(samples, "http_request_seconds_count", method="other", route="/models", status="4xx") == 5
    routes = {*api.get("/openapi.json").json()["paths"], "/openapi.json", "unmatched"}
    for _, labels in samples:
        values = dict(labels)
        assert values.get("route", "unmatched") in routes
        assert values.get("method", "GET") in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"}
        assert values.get("model", "shoes") == "shoes"


def test_an_open_stream_counts_as_a_listener(api: TestClient, fake_worker: Any) -> None:
    job_id = api.post("/generate", json={}).json()["id"]
    with api.websocket_connect(f"ws://127.0.0.1:8000/jobs/{job_id}/events") as socket:
        assert socket.receive_json()["type"] == "queued"
        assert value(scrape(api), "listeners") == 1
        api.delete(f"/jobs/{job_id}")
        assert socket.receive_json()["type"] == "canceled"
        assert socket.receive()["code"] == 1000
    end = time.monotonic() + 30
    while value(scrape(api), "listeners"):
        assert time.monotonic() < end


def test_metrics_need_a_key_and_contain_none(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    api = make_client(keys=("s3cret-key",))
    assert api.get("/metrics", headers={"Authorization": ""}).status_code == 401
    api.post("/generate", json={})
    text = api.get("/metrics").text
    assert "s3cret" not in text
    assert key_hash("s3cret-key")[:16] not in text  # nor the owners of jobs


def test_without_redis_metrics_report_it(make_client: MakeClient, missing_redis_url: str) -> None:
    samples = scrape(make_client(redis_url=missing_redis_url))
    assert value(samples, "redis_up") == 0
    assert not [name for name, _ in samples if name == "denoised_queue_jobs"]
    assert value(samples, "listeners") == 0


def test_a_hanging_redis_is_reported_within_two_seconds(make_client: MakeClient) -> None:
    """The best of three attempts, so that a busy machine does not look like a hang."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = make_client(redis_url=f"redis://127.0.0.1:{silent.getsockname()[1]}")
        took = []
        for _ in range(3):
            started = time.monotonic()
            assert value(scrape(api), "redis_up") == 0
            took.append(time.monotonic() - started)
            if took[-1] < 2.0:
                break
    assert min(took) < 2.0


def test_a_slow_redis_is_reported_within_two_seconds(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several replies, each in time, would together be too late."""
    store, reported = api.app.state.services.store, threading.Event()  # type: ignore[attr-defined]
    totals = store.workers.totals
    monkeypatch.setattr(store.workers, "totals", lambda: (reported.wait(30.0), totals())[1])
    started = time.monotonic()
    try:
        assert value(scrape(api), "redis_up") == 0
        assert time.monotonic() - started < 5.0
    finally:
        reported.set()
