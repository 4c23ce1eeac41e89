"""Liveness, readiness, models, the OpenAPI document, and an API without Redis."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from starlette.testclient import TestClient

from denoised.app.http.middleware.request_context import REDIS_SECONDS
from denoised.app.services import COMMAND_SECONDS

MakeClient = Callable[..., TestClient]


def test_the_process_lives_without_redis(make_client: MakeClient, missing_redis_url: str) -> None:
    assert make_client(redis_url=missing_redis_url).get("/healthz").status_code == 200


def test_readiness_names_what_is_missing(make_client: MakeClient, fake_worker: Any, missing_redis_url: str) -> None:
    api = make_client()
    assert (api.get("/readyz").status_code, api.get("/readyz").json()["reasons"]) == (503, ["no_worker"])
    fake_worker.serve()
    assert (api.get("/readyz").status_code, api.get("/readyz").json()) == (200, {"ready": True, "reasons": []})
    away = make_client(redis_url=missing_redis_url).get("/readyz")
    assert (away.status_code, away.json()["reasons"]) == (503, ["redis"])


def test_a_read_only_replica_is_not_ready(api: TestClient, client: redis.Redis) -> None:
    assert api.get("/readyz").status_code == 200
    client.replicaof("127.0.0.1", "1")
    try:
        answer = api.get("/readyz")
        assert (answer.status_code, answer.json()["reasons"]) == (503, ["redis_read_only"])
        assert api.post("/generate", json={}).status_code == 503
        assert api.get("/models").status_code == 200, "reading works"
    finally:
        client.replicaof("NO", "ONE")
    assert api.get("/readyz").status_code == 200


def test_a_full_store_is_ready_for_what_needs_no_memory(api: TestClient, client: redis.Redis) -> None:
    client.config_set("maxmemory", "1")
    try:
        assert api.get("/readyz").status_code == 200
    finally:
        client.config_set("maxmemory", "0")


def test_a_process_whose_event_reader_has_ended_is_not_ready(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = api.app.state.services.relay._reader  # type: ignore[attr-defined]
    monkeypatch.setattr(reader, "_read", sys.exit)
    while reader.alive:
        time.sleep(0.05)
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["events"])


def test_a_draining_server_is_not_ready(api: TestClient) -> None:
    api.portal.call(api.app.state.services.drain)  # type: ignore[attr-defined, union-attr]
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["draining"])
    assert api.get("/healthz").status_code == 200


def test_models_are_those_of_live_workers_with_the_number_of_workers(
    make_client: MakeClient, fake_worker: Any, card_of: Any
) -> None:
    api = make_client()
    assert api.get("/models").json() == []
    fake_worker.serve(card_of(), card_of(name="hats", labels=[]), name="a")
    fake_worker.serve(card_of(), name="b")
    shoes, hats = api.get("/models").json()
    assert (shoes["name"], shoes["workers"]) == ("shoes", 2)
    assert (hats["name"], hats["workers"], hats["labels"]) == ("hats", 1, [])
    promised = {"width", "height", "channels", "timesteps", "prediction_type", "samplers", "max_images", "numerics"}
    assert promised <= set(shoes)
    fake_worker.serve(card_of(name="boots", digest="1a2b"), name="c")
    fake_worker.serve(card_of(name="boots", digest="3c4d"), name="d")
    boots = next(model for model in make_client().get("/models").json() if model["name"] == "boots")
    assert (boots["digest"], boots["workers"]) == ("1a2b", 1), "another model of that name is not counted"
    levels = dict.fromkeys(("spacing", "sigma_min", "sigma_max", "sigmas"))
    off = {"guidance_rescale": 0.0, "guidance_interval": None, **levels}
    assert shoes["default"] == {"sampler": "ddim", "steps": 20, "guidance_scale": 2.5, **off}


CALLS = [
    ("POST", "/generate"),
    ("GET", "/jobs"),
    ("GET", "/jobs/abc"),
    ("DELETE", "/jobs/abc"),
    ("GET", "/jobs/abc/images/0"),
    ("GET", "/jobs/abc/events"),
    ("GET", "/models"),
    ("GET", "/workers"),
    ("POST", "/tickets"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_without_redis_every_answer_is_a_503(
    method: str, path: str, make_client: MakeClient, missing_redis_url: str
) -> None:
    """rq#998: JSON, no hang, no 500."""
    body = {"json": {}} if path == "/generate" else {}
    answer = make_client(redis_url=missing_redis_url).request(method, path, **body)  # type: ignore[arg-type]
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Redis" in answer.json()["detail"]


def test_a_hanging_redis_is_reported_within_two_seconds(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of three attempts, so that a busy machine does not look like a hang."""
    monkeypatch.setattr("denoised.app.http.middleware.request_context.REDIS_SECONDS", REDIS_SECONDS)
    monkeypatch.setattr("denoised.app.services.COMMAND_SECONDS", COMMAND_SECONDS)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = make_client(redis_url=f"redis://127.0.0.1:{silent.getsockname()[1]}")
        took = []
        for _ in range(3):
            started = time.monotonic()
            assert api.post("/generate", json={}).status_code == 503
            took.append(time.monotonic() - started)
            if took[-1] < 2.0:
                break
    assert min(took) < 2.0


def test_a_socket_without_redis_closes_with_try_again_later(make_client: MakeClient, missing_redis_url: str) -> None:
    with make_client(redis_url=missing_redis_url).websocket_connect("ws://127.0.0.1:8000/generate") as socket:
        socket.send_json({})
        assert socket.receive_json()["status"] == 503


ROUTES = {
    "/generate": {"post"},
    "/verify": {"post"},
    "/jobs": {"get"},
    "/jobs/{job_id}": {"get", "delete"},
    "/jobs/{job_id}/images/{index}": {"get"},
    "/jobs/{job_id}/events": {"get"},
    "/models": {"get"},
    "/workers": {"get"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/tickets": {"post"},
    "/metrics": {"get"},
    "/jobs/{job_id}/animation": {"get"},
    "/v1/images/generations": {"post"},
    "/v1/models": {"get"},
    "/v1/models/{model}": {"get"},
}


def test_the_openapi_document_names_every_route(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    for path, methods in ROUTES.items():
        assert methods <= set(document["paths"][path]), path
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["responses"], (method, path)
            assert operation["summary"], (method, path)


def test_every_reference_in_the_openapi_document_resolves(api: TestClient) -> None:
    text = api.get("/openapi.json").text
    document = json.loads(text)
    references = {part.split('"')[0] for part in text.split('"$ref":"')[1:]}
    assert references
    for reference in references:
        place = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


def test_the_openapi_document_has_every_response_to_a_picture_request(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    responses = document["paths"]["/generate"]["post"]["responses"]
    assert {"200", "202", "403", "413", "415", "422", "429", "500", "503", "504", "507"} <= responses.keys()
    assert "application/problem+json" in responses["500"]["content"]
