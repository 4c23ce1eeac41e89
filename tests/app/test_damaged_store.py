"""Damaged values of every kind, at every key: each costs itself alone, and no request of a client is a 500."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis
from starlette.testclient import TestClient

from denoised.app.streaming.relay import POLL_SECONDS
from denoised.app.streaming.stream_reader import BLOCK_MS, EXCLUDED_SECONDS
from denoised.jobs.store import redis_keys as keys

VALUES: dict[str, Any] = {
    "empty": b"",
    "text": b"many",
    "bytes": b"\xff\xfe\x00",
    "NaN": b"nan",
    "infinity": b"1e999",
    "negative": b"-7",
    "huge": b"9" * 400,
    "list": b"[1, 2]",
    "null": b"null",
    "NaN in JSON": b'{"evaluations_per_second": NaN, "n": NaN}',
    "deep": b"[" * 200_000,
    "large": b"x" * (5 << 20),
}
RECORD_FIELDS = (
    "request",
    "images",
    "error",
    "created_at",
    "started_at",
    "status",
    "attempt",
    "step",
    "mean_batch",
    "seq",
)
# Each value in every third field, and each field with every third value; the other pairs are slow tests.
THIRDS = [
    pytest.param(value, third, id=f"{name}-{third}", marks=marks)
    for k, (name, value) in enumerate(VALUES.items())
    for third in range(3)
    for marks in [() if third == k % 3 else pytest.mark.slow]
]
SHARED_KEYS = (keys.WORKERS, keys.MODELS, keys.ENGINE_TOTALS, keys.JOB_TOTALS, keys.jobs(""), keys.ENDS)


def check_routes(api: TestClient, job_id: str) -> None:
    """Every route answers, whatever stands in Redis; with 503 at worst, where a shared key is needed."""
    for path in ("/jobs", "/workers", "/metrics", "/readyz", "/models", f"/jobs/{job_id}", f"/jobs/{job_id}/images/0"):
        assert api.get(path).status_code in (200, 404, 503), path
    with api.stream("GET", f"/jobs/{job_id}/events?after=0", headers={"Accept": "text/event-stream"}) as answer:
        assert answer.status_code in (200, 404, 503)


@pytest.mark.parametrize(("value", "third"), THIRDS)
def test_a_damaged_field_of_a_record_costs_its_job_alone(
    value: bytes, third: int, api: TestClient, fake_worker: Any
) -> None:
    for field in RECORD_FIELDS[third::3]:
        job_id, sound = fake_worker.succeeded(), fake_worker.succeeded()
        fake_worker.client.hset(keys.job(job_id), field, value)
        check_routes(api, job_id)
        assert sound in {job["id"] for job in api.get("/jobs").json()["jobs"]}, field
        assert api.delete(f"/jobs/{job_id}").status_code in (404, 409, 200), field
        fake_worker.client.delete(keys.job(job_id), keys.job(sound))
    assert api.post("/generate", json={}).status_code == 202


@pytest.mark.parametrize(("value", "third"), THIRDS)
def test_a_damaged_record_in_the_queue_costs_no_request(
    value: bytes, third: int, api: TestClient, fake_worker: Any
) -> None:
    for field in ("request", "created_at", "evaluations", "status")[third::3]:
        job_id = api.post("/generate", json={}).json()["id"]
        sound = api.post("/generate", json={}).json()["id"]
        fake_worker.client.hset(keys.job(job_id), field, value)
        app = api.app.state.services  # type: ignore[attr-defined]
        app.queue._records.clear()  # as in another process
        assert api.post("/generate", json={}).status_code == 202, field
        assert api.get("/workers").json()["waiting"][0]["jobs"] >= 1
        assert api.get(f"/jobs/{sound}").json()["queue_position"] is not None
        check_routes(api, job_id)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0},
        {"n": -1},
        {"n": 10**9},
        {"steps": 0},
        {"steps": 10**12},
        {"stages": 0},
        {"seed": -1},
        {"guidance_scale": "2"},
        {"eta": True},
        {"model": 7},
        {"model": "x" * 10_000},
    ],
    ids=str,
)
def test_a_queued_request_out_of_range_breaks_no_estimate(
    fields: dict[str, Any], api: TestClient, fake_worker: Any
) -> None:
    fake_worker.serve(speed=100.0)
    job_id = api.post("/generate", json={}).json()["id"]
    stored = json.loads(fake_worker.client.hget(keys.job(job_id), "request"))
    fake_worker.client.hset(keys.job(job_id), "request", json.dumps({**stored, **fields}))
    api.app.state.services.queue._records.clear()  # type: ignore[attr-defined]
    answer = api.post("/generate", json={})
    assert answer.status_code == 202
    assert answer.json()["eta_seconds"] < 10
    check_routes(api, job_id)


@pytest.mark.parametrize(("value", "third"), THIRDS)
def test_a_damaged_worker_report_or_a_field_of_one_costs_itself(
    value: bytes, third: int, api: TestClient, fake_worker: Any
) -> None:
    fake_worker.serve(name="bad")
    whole = json.loads(fake_worker.client.get(keys.worker("bad")))
    texts = [value] + [json.dumps({**whole, name: as_json(value)}).encode() for name in list(whole)[third::3]]
    for text in texts:
        fake_worker.client.set(keys.worker("bad"), text)
        api.app.state.services.catalog._fleet.__dict__["read_at"] = float("-inf")  # type: ignore[attr-defined]
        check_routes(api, "0")
        answer = api.post("/generate", json={})
        assert answer.status_code == 202, (text[:100], answer.text)


def as_json(value: bytes) -> Any:
    """A damaged value within JSON."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value[:1000].decode(errors="replace")


@pytest.mark.parametrize("paces", [5, {"shoes": 5}, {"shoes": [[1]]}, {"shoes": [[8, 1], [8, 2]]}, {"shoes": [[0, 0]]}])
def test_paces_that_nothing_can_be_computed_from_cost_their_report(
    paces: Any, api: TestClient, fake_worker: Any
) -> None:
    fake_worker.serve(name="bad", speed=10.0)
    whole = json.loads(fake_worker.client.get(keys.worker("bad")))
    fake_worker.client.set(keys.worker("bad"), json.dumps({**whole, "paces": paces}))
    assert api.post("/generate", json={}).status_code == 202
    assert {worker["name"] for worker in api.get("/workers").json()["workers"]} == {"worker-1"}


@pytest.mark.parametrize("name", [*SHARED_KEYS, "rq:queue:shoes", "rq:wip:shoes"])
def test_a_key_of_another_type_is_no_500(name: str, api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.succeeded()
    for kind in ("string", "set", "hash"):
        fake_worker.client.delete(name)
        fake_worker.client.copy(make(fake_worker.client, kind), name)
        api.app.state.services.catalog._fleet.__dict__["read_at"] = float("-inf")  # type: ignore[attr-defined]
        check_routes(api, job_id)
        answer = api.post("/generate", json={})
        assert answer.status_code in (202, 503), answer.text
        if answer.status_code == 202:
            assert api.get(f"/jobs/{answer.json()['id']}").status_code == 200
        fake_worker.client.delete(name)


def make(client: redis.Redis, kind: str) -> str:
    """A key of some type."""
    name = f"sample:{kind}"
    {
        "string": lambda: client.set(name, "x"),
        "set": lambda: client.sadd(name, b"\xff\xfe", "x"),
        "hash": lambda: client.hset(name, "x", "y"),
        "list": lambda: client.rpush(name, b"\xff\xfe", "x"),
        "zset": lambda: client.zadd(name, {b"\xff\xfe": 1.0, "x": float("inf")}),
        "stream": lambda: client.xadd(name, {"x": "y"}),
    }[kind]()
    return name


@pytest.mark.parametrize(
    ("setting", "value", "refused"), [("min-replicas-to-write", "1", 503), ("maxmemory", "1", 507)]
)
def test_while_redis_refuses_writes_the_front_end_still_reads(
    setting: str, value: str, refused: int, api: TestClient, fake_worker: Any
) -> None:
    done, expired = fake_worker.succeeded(), fake_worker.succeeded()
    waiting = api.post("/generate", json={}).json()["id"]
    fake_worker.client.delete(keys.job(expired))
    fake_worker.client.sadd(keys.WORKERS, "a worker that has died")
    fake_worker.client.config_set(setting, value)
    try:
        assert {job["id"] for job in api.get("/jobs").json()["jobs"]} == {done, waiting}
        for path in (f"/jobs/{done}", f"/jobs/{waiting}", f"/jobs/{done}/images/0", "/workers", "/models", "/metrics"):
            assert api.get(path).status_code == 200, path
        text = api.get(f"/jobs/{done}/events", headers={"Accept": "text/event-stream"}).text
        assert "succeeded" in text
        answer = api.post("/generate", json={})
        assert answer.status_code == refused
        assert refused == 507 or "retry-after" in answer.headers
        canceled = api.delete(f"/jobs/{waiting}")
        assert canceled.status_code == (200 if refused == 507 else 503), "a cancel frees memory"
    finally:
        fake_worker.client.config_set(setting, "0")
    assert api.post("/generate", json={}).status_code == 202


def test_memory_is_reserved_for_what_accepted_jobs_will_write(
    make_client: Callable[..., TestClient], fake_worker: Any, card_of: Callable[..., Any]
) -> None:
    """Accepted until their frames, pictures and resume points would exceed maxmemory; none of it is written yet."""
    fake_worker.serve(card_of(name="large", width=256, height=256, channels=3))
    api = make_client()
    used = int(fake_worker.client.info("memory")["used_memory"])
    fake_worker.client.config_set("maxmemory", str(used + (200 << 20)))
    try:
        accepted = 0
        body = {"model": "large", "steps": 20, "preview_every": 1, "n": 2}
        while (answer := api.post("/generate", json=body)).status_code == 202:
            accepted += 1
            assert accepted < 100
        assert answer.status_code == 507
        each = 2 * 20 * 256 * 256 * 3 * 4 / 3 + 2 * 256 * 256 * 3 * 5
        assert 0.5 < accepted * each / (200 << 20) < 1.0
        assert api.post("/generate", json={"model": "large", "steps": 20}).status_code in (202, 507)
        assert int(fake_worker.client.info("memory")["used_memory"]) < used + (10 << 20)
    finally:
        fake_worker.client.config_set("maxmemory", "0")


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_a_damaged_idempotency_key_costs_itself(value: bytes, api: TestClient, fake_worker: Any) -> None:
    """It does not claim that another body was sent."""
    assert api.post("/generate", json={}, headers={"Idempotency-Key": "one"}).status_code == 202
    (name,) = fake_worker.client.scan_iter("denoised:idempotency:*")
    fake_worker.client.set(name, value)
    refused = api.post("/generate", json={}, headers={"Idempotency-Key": "one"})
    assert refused.status_code == 422
    assert '"one" cannot be used, because its record is damaged' in refused.json()["detail"]
    assert api.post("/generate", json={}, headers={"Idempotency-Key": "two"}).status_code == 202


@pytest.mark.parametrize("kind", ["string", "set", "hash", "list", "zset", "stream"])
def test_a_shared_key_of_another_type_costs_one_request_at_most(kind: str, api: TestClient, fake_worker: Any) -> None:
    """It is removed: nothing of ours is in it, and all jobs would be refused until somebody else removes it."""
    names = ["rq:queue:shoes", "rq:wip:shoes", "rq:queues", keys.jobs(""), keys.JOB_TOTALS, keys.model_choice("")]
    for name in names:
        fake_worker.client.delete(name)
        fake_worker.client.copy(make(fake_worker.client, kind), name)
        api.post("/generate", json={})
        accepted = api.post("/generate", json={})
        assert accepted.status_code == 202, (name, accepted.text)
        for path in ("/jobs", "/workers", "/v1/models", "/sdapi/v1/options", "/sdapi/v1/progress", "/metrics"):
            assert api.get(path).status_code == 200, (name, path)
        assert api.post("/sdapi/v1/options", json={"sd_model_checkpoint": "shoes"}).status_code == 200, name
        assert api.delete(accepted.headers["location"]).status_code == 200, name
        assert api.post("/sdapi/v1/interrupt").status_code == 200, name


@pytest.mark.parametrize("kind", ["string", "set", "hash", "list", "zset"])
def test_damaged_events_are_none(kind: str, api: TestClient, fake_worker: Any) -> None:
    """The job and its picture stay; a client that follows its events is not asked to try again forever."""
    job_id = fake_worker.succeeded(preview_every=1)
    fake_worker.client.delete(keys.events(job_id))
    fake_worker.client.copy(make(fake_worker.client, kind), keys.events(job_id))
    assert api.get(f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}).status_code == 204
    assert api.get(f"/jobs/{job_id}/animation").status_code == 409
    assert api.get(f"/jobs/{job_id}").status_code == 200
    assert api.get("/sdapi/v1/progress").status_code == 200


def test_an_idempotency_key_with_a_damaged_job_can_be_replaced(api: TestClient, fake_worker: Any) -> None:
    job_id = api.post("/generate", json={}, headers={"Idempotency-Key": "one"}).json()["id"]
    fake_worker.client.hset(keys.job(job_id), "request", b"no JSON")
    refused = api.post("/generate", json={}, headers={"Idempotency-Key": "one"})
    assert refused.status_code == 422
    assert '"one" cannot be used, because its record is damaged' in refused.json()["detail"]


def test_an_idempotency_key_reveals_no_job_of_another_caller(
    make_client: Callable[..., TestClient], fake_worker: Any
) -> None:
    """Who may write to Redis can bind a key to any job, and a restored key names a job of another store."""
    fake_worker.serve()
    api = make_client(keys=("first-key-of-the-test", "second-key-of-the-test"))
    secret = api.post("/generate", json={}).json()["id"]
    second = {"Authorization": "Bearer second-key-of-the-test"}
    assert api.get(f"/jobs/{secret}", headers=second).status_code == 404
    mine = api.post("/generate", json={"steps": 3}, headers={**second, "Idempotency-Key": "k"}).json()["id"]
    (name,) = fake_worker.client.scan_iter("denoised:idempotency:*")
    fake_worker.client.set(name, fake_worker.client.get(name).replace(mine.encode(), secret.encode()))
    answer = api.post("/generate", json={"steps": 3}, headers={**second, "Idempotency-Key": "k"})
    assert answer.status_code == 422
    assert secret not in answer.text


def test_ends_are_noticed_again_after_their_stream_was_damaged(url: str, fake_worker: Any) -> None:
    """The next end replaces the key; clients that wait are notified as before, and do not wait for the slow poll."""
    fake_worker.client.delete(keys.ENDS)
    fake_worker.client.set(keys.ENDS, "not a stream")
    time.sleep(0.5)
    fake_worker.succeeded()
    assert fake_worker.client.type(keys.ENDS) == b"stream"
    time.sleep(EXCLUDED_SECONDS + BLOCK_MS / 1000)
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, timeout=30, trust_env=False) as api:
        waiting = pool.submit(api.post, "/generate", json={"steps": 5}, headers={"Prefer": "wait=20"})
        while not (queued := [job for job in fake_worker.store.listing.page("", 9) if not job.terminal]):
            time.sleep(0.01)
        time.sleep(0.2)
        fake_worker.finish(queued[0].id, fake_worker.start(queued[0].id))
        ended_at = time.monotonic()
        assert waiting.result().status_code == 200
        assert time.monotonic() - ended_at < POLL_SECONDS / 2
