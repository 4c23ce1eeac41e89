"""What operators order about models, who may, and what workers report about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from denoised.app.admission.catalog import CACHE_SECONDS
from denoised.app.http.api_keys import KeyRing, key_hash
from denoised.app.http.key_limits import KeyLimits
from denoised.client import Client, ModelState
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.models.kept_models import kept_models
from denoised.jobs.store.models.model_list import StoredOrder
from denoised.jobs.worker_report import WorkerReport
from tests.webhook_receiver import until

ORDERS = [("PUT", "/models/shoes"), ("DELETE", "/models/shoes"), ("POST", "/models/shoes/reload")]


@pytest.fixture
def ring() -> KeyRing:
    names = {key_hash("my-key"): "me", key_hash("the-key"): "boss"}
    return KeyRing(names, {"boss": KeyLimits(operator=True)})


@pytest.mark.parametrize(("method", "path"), ORDERS)
def test_only_an_operator_s_key_may_order_anything(
    method: str, path: str, make_client: Callable[..., TestClient], fake_worker: Any, ring: KeyRing
) -> None:
    fake_worker.serve()
    api = make_client(ring=ring)
    refused = api.request(method, path, headers={"Authorization": "Bearer my-key"})
    assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
    assert "operator" in refused.json()["detail"]
    assert fake_worker.store.workers.orders.read() == {}
    assert api.request(method, path, headers={"Authorization": "Bearer the-key"}).status_code == 202
    assert api.request(method, path).status_code == 401
    assert list(fake_worker.store.workers.orders.read()) == ["shoes"]


@pytest.mark.parametrize(("method", "path"), ORDERS)
def test_without_keys_only_programs_on_this_machine_may(method: str, path: str, url: str, client: Any) -> None:
    """A connection from this machine that names another host is a proxy's."""
    with httpx.Client(base_url=url, trust_env=False) as http:
        assert http.request(method, path).status_code == 202
        assert http.request(method, path, headers={"Host": "pictures.example"}).status_code == 403
        assert http.request(method, path, headers={"Origin": "https://other.example"}).status_code == 403


@pytest.mark.parametrize("host", ["192.0.2.7", "testclient", "10.0.0.1"])
def test_without_keys_other_machines_may_not(
    host: str, make_client: Callable[..., TestClient], fake_worker: Any
) -> None:
    """A server that trusts its network lets them make pictures."""
    fake_worker.serve()
    app = make_client(host="0.0.0.0").app
    away = TestClient(app, base_url="http://localhost:8000", client=(host, 4000))
    assert away.get("/models").status_code == 200
    refused = away.delete("/models/shoes")
    assert (refused.status_code, "localhost" in refused.json()["detail"]) == (403, True)
    assert fake_worker.store.workers.orders.read() == {}


def test_an_unknown_model_cannot_be_ordered(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as http:
        for method, path in ORDERS:
            answer = http.request(method, path.replace("shoes", "..%2Fboots"))
            assert answer.status_code == 404


def test_orders_add_up_and_are_what_workers_read(url: str, fake_worker: Any) -> None:
    orders = fake_worker.store.workers.orders
    with Client(url) as client:
        assert client.remove_model("shoes").removed
        assert orders.read() == {"shoes": StoredOrder(removed=True, generation=1)}
        assert client.reload_model("shoes").removed, "a reload does not bring it back"
        assert client.add_model("shoes").generation == 3
        assert orders.read() == {"shoes": StoredOrder(removed=False, generation=3)}


@pytest.mark.parametrize("value", [b"", b"[]", b"no JSON", b'{"removed": "yes"}', b'{"generation": -1}', b"7"])
def test_a_damaged_order_is_no_order_and_the_next_one_replaces_it(value: bytes, url: str, fake_worker: Any) -> None:
    fake_worker.client.hset(keys.MODEL_ORDERS, "shoes", value)
    assert fake_worker.store.workers.orders.read() == {}
    with Client(url) as client:
        assert client.remove_model("shoes").removed
    assert fake_worker.store.workers.orders.read()["shoes"].removed


def test_a_removed_model_is_not_kept_for_a_time_without_workers(
    make_client: Callable[..., TestClient], fake_worker: Any, start_server: Callable[..., str]
) -> None:
    fake_worker.serve()
    (report,) = fake_worker.store.workers.live()
    fake_worker.store.workers.kept.keep(kept_models(report))
    with Client(start_server(queue_without_worker=True)) as client:
        client.remove_model("shoes")
        fake_worker.store.workers.remove("worker-1")
    assert make_client(queue_without_worker=True).get("/models").json() == []


def test_workers_tell_how_far_they_are(url: str, fake_worker: Any) -> None:
    state = {"model": "hats", "state": "failed", "reason": "hats: no such model folder", "digest": "", "generation": 4}
    report = WorkerReport("worker-2", [], 16, 0, 0, None, states=[state, {"model": "bags", "generation": "new"}])
    fake_worker.store.workers.report(report, ttl=600)
    with Client(url) as client:

        def found() -> list[tuple[ModelState, ...]]:
            return [tuple(worker.states) for worker in client.workers().workers if worker.name == "worker-2"]

        until(found, "the API reads the reports of workers again", CACHE_SECONDS + 10)
        assert found()[0] == (ModelState(**state, raw={}), ModelState("bags", "", raw={}))
        assert client.add_model("hats").generation == 1, "a model that no worker could load yet may be tried again"
