"""Models that no worker serves now: their jobs wait for one, if the operator allows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from denoised.jobs.store.models.kept_models import kept_models
from denoised.jobs.worker_report import WorkerReport
from denoised.model.serving.card import ModelCard


@pytest.fixture
def gone(fake_worker, card_of: Callable[..., ModelCard]) -> None:  # type: ignore[no-untyped-def]
    """A worker has served `shoes` and `hats`, and is gone. It evaluated four images of `shoes` per second."""
    models = [card_of().model_dump(), card_of(name="hats").model_dump()]
    paces = {"shoes": [(1.0, 1.0), (4.0, 1.0)]}
    report = WorkerReport("worker-1", models, 4, 0, 0, 4.0, paces=paces, batches={"shoes": [4, 1, 64]})
    fake_worker.store.workers.report(report, ttl=600)
    fake_worker.store.workers.kept.keep(kept_models(report))
    fake_worker.store.workers.remove("worker-1")


def gauge(api: TestClient, name: str, **labels: str) -> float | None:
    families = {family.name: family for family in text_string_to_metric_families(api.get("/metrics").text)}
    samples = families[f"denoised_{name}"].samples
    return next((sample.value for sample in samples if labels.items() <= sample.labels.items()), None)


def test_a_job_waits_for_a_worker_with_a_place_a_warning_and_no_invented_time(
    gone: None, make_client: Callable[..., TestClient]
) -> None:
    api = make_client(queue_without_worker=True)
    first, second = (api.post("/generate", json={"label": "sneaker"}).json() for _ in range(2))
    assert (first["status"], first["queue_position"], second["queue_position"]) == ("queued", 0, 1)
    assert first["model"] == "shoes", "the default is the one that it was"
    assert second["eta_seconds"] is None, "nobody knows when a worker starts"
    reason = "no worker serves shoes now; the job waits until one starts"
    assert first["warnings"] == [{"field": "model", "message": reason}]


def test_without_the_setting_nothing_is_accepted(gone: None, make_client: Callable[..., TestClient]) -> None:
    api = make_client()
    for body in ({}, {"model": "hats"}):
        answer = api.post("/generate", json=body)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert (api.get("/models").json(), api.get("/readyz").json()["reasons"]) == ([], ["no_worker"])
    assert gauge(api, "queue_without_worker") == 0


def test_models_and_readiness_tell_that_jobs_are_taken(
    gone: None,
    make_client: Callable[..., TestClient],
    fake_worker,
    card_of: Callable[..., ModelCard],  # type: ignore[no-untyped-def]
) -> None:
    api = make_client(queue_without_worker=True)
    assert [(each["name"], each["workers"]) for each in api.get("/models").json()] == [("shoes", 0), ("hats", 0)]
    assert (api.get("/readyz").status_code, api.get("/readyz").json()) == (200, {"ready": True, "reasons": []})
    assert gauge(api, "queue_without_worker") == 1
    fake_worker.serve(card_of(name="hats"))
    assert [(each["name"], each["workers"]) for each in api.get("/models").json()] == [("hats", 1), ("shoes", 0)]
    assert api.post("/generate", json={}).json()["model"] == "hats", "a live model is the default before the others"


def test_a_model_that_nobody_ever_served_is_still_refused(gone: None, make_client: Callable[..., TestClient]) -> None:
    answer = make_client(queue_without_worker=True).post("/generate", json={"model": "bags"})
    assert answer.status_code == 422
    assert '"bags" is not served (served: shoes, hats)' in answer.json()["detail"]


def test_an_empty_service_is_not_ready(make_client: Callable[..., TestClient], fake_worker) -> None:  # type: ignore[no-untyped-def]
    api = make_client(queue_without_worker=True)
    assert api.get("/readyz").json() == {"ready": False, "reasons": ["no_worker"]}
    assert api.post("/generate", json={}).status_code == 503


def test_a_request_is_checked_against_the_card_that_was_kept(
    gone: None, make_client: Callable[..., TestClient]
) -> None:
    answer = make_client(queue_without_worker=True).post("/generate", json={"label": "boat"})
    assert answer.status_code == 422


def test_an_autoscaler_sees_the_work_of_models_without_a_worker(
    gone: None, make_client: Callable[..., TestClient]
) -> None:
    """The query of `ops/kubernetes/keda` is the sum over models of drain_seconds · max(workers, 1)."""
    api = make_client(queue_without_worker=True)
    assert gauge(api, "drain_seconds", model="shoes") == 0
    api.post("/generate", json={"steps": 40})
    assert gauge(api, "workers", model="shoes") == 0
    assert gauge(api, "drain_seconds", model="shoes") == pytest.approx(10), "40 evaluations, four a second"
