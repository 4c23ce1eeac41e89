"""Quotas of keys: what is refused, what a refusal says, and what `GET /usage` shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from denoised.app.http.api_keys import KeyRing, key_hash
from denoised.app.http.key_limits import KeyLimits
from denoised.jobs.store.store import Store
from denoised.jobs.store.update import JobUpdate, final_update

KEYS = {"me": "my-key", "you": "your-key", "boss": "the-key"}


@pytest.fixture
def api_of(make_client: Callable[..., TestClient], fake_worker: Any) -> Callable[..., TestClient]:
    """`api_of(**limits)`: a client with the key of "me", which has these limits; "boss" is an operator."""

    def api_of(**limits: Any) -> TestClient:
        fake_worker.serve()
        ring = KeyRing(
            {key_hash(key): name for name, key in KEYS.items()},
            {"me": KeyLimits(**limits), "boss": KeyLimits(operator=True)},
        )
        client = make_client(ring=ring)
        client.headers["Authorization"] = f"Bearer {KEYS['me']}"
        return client

    return api_of


def as_(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


def quotas(api: TestClient, name: str = "me") -> dict[str, dict[str, Any]]:
    answer = api.get("/usage", headers=as_(name))
    assert answer.status_code == 200
    assert answer.json()["key"] == name
    return {quota["name"]: quota for quota in answer.json()["quotas"]}


@pytest.mark.parametrize(
    ("limits", "name", "used"),
    [
        ({"per_minute": 50}, "evaluations_per_minute", 40),
        ({"per_day": 50}, "evaluations_per_day", 40),
        ({"images": 4}, "images", 4),
        ({"jobs": 2}, "jobs_per_key", 2),
        ({"evaluations": 50}, "evaluations_per_key", 40),
    ],
)
def test_each_quota_refuses_the_job_that_exceeds_it_and_says_what_is_left(
    api_of: Callable[..., TestClient], client: Any, limits: dict[str, int], name: str, used: int
) -> None:
    api = api_of(**limits)
    seconds = client.time()[0] % 60
    time.sleep(60 - seconds if seconds > 50 else 0)  # all within one minute
    body = {"steps": 10, "n": 2, "sampler": "ddim", "guidance_scale": 1.0}
    for _ in range(2):
        assert api.post("/generate", json=body).status_code == 202
    allowed = next(iter(limits.values()))
    assert quotas(api)[name] | {"resets_in": None} == {
        "name": name,
        "allowed": allowed,
        "used": used,
        "left": allowed - used,
        "resets_in": None,
    }
    refused = api.post("/generate", json=body)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 86_400
    assert refused.json()["quota"] == {"name": name, "allowed": allowed, "used": used, "left": allowed - used}
    assert str(allowed) in refused.json()["detail"]
    assert quotas(api)[name]["used"] == used, "a refused job counts nothing"
    assert api.post("/generate", json=body, headers=as_("you")).status_code == 202, "other keys have their own"
    assert f'denoised_refusals_total{{limit="{name}"}} 1.0' in api.get("/metrics").text


def test_a_job_larger_than_a_quota_is_accepted_when_nothing_is_used(api_of: Callable[..., TestClient]) -> None:
    api = api_of(per_minute=5, per_day=5, images=1, evaluations=5, jobs=9)
    assert api.post("/generate", json={"steps": 10, "n": 2}).status_code == 202
    assert api.post("/generate", json={"steps": 1}).status_code == 429


def test_concurrent_requests_do_not_exceed_a_quota_together(api_of: Callable[..., TestClient]) -> None:
    api = api_of(per_day=100)
    statuses: list[int] = []

    def post() -> None:
        body = {"steps": 10, "sampler": "ddim", "guidance_scale": 1.0}
        statuses.append(api.post("/generate", json=body).status_code)

    threads = [threading.Thread(target=post) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [202] * 10 + [429] * 10
    assert quotas(api)["evaluations_per_day"]["left"] == 0


def test_a_repeated_request_with_an_idempotency_key_counts_once(api_of: Callable[..., TestClient]) -> None:
    api = api_of(per_day=1000)
    body = {"steps": 10, "sampler": "ddim", "guidance_scale": 1.0}
    answers = {api.post("/generate", json=body, headers={"Idempotency-Key": "k"}).json()["id"] for _ in range(3)}
    assert len(answers) == 1
    assert quotas(api)["evaluations_per_day"]["used"] == 10
    assert quotas(api)["images"]["used"] == 1


def test_images_are_kept_until_they_expire_and_those_of_canceled_jobs_not_at_all(
    api_of: Callable[..., TestClient], client: Any
) -> None:
    api, store = api_of(images=3), Store(client, result_ttl=1000)
    kept, canceled = (api.post("/generate", json={"n": n}).json()["id"] for n in (2, 1))
    assert quotas(api)["images"]["left"] == 0
    assert api.delete(f"/jobs/{canceled}").status_code == 200
    assert quotas(api)["images"]["left"] == 1
    store.attempts.start(kept, "worker", "fake")
    end = JobUpdate(kept, attempt=1, number=1)
    end.end("succeeded")
    assert store.write(end)
    quota = quotas(api)["images"]
    assert (quota["used"], quota["left"]) == (2, 1)
    assert 900 < quota["resets_in"] <= 1000
    client.zadd("denoised:kept:me", {f"{kept}:2": 1.0})
    assert quotas(api)["images"]["used"] == 0


def test_a_job_that_ended_before_is_not_counted_again(api_of: Callable[..., TestClient], client: Any) -> None:
    api, store = api_of(), Store(client)
    job = api.post("/generate", json={}).json()["id"]
    record = store.job(job)
    assert record is not None
    client.delete("denoised:kept:me")
    assert store.write(final_update(record, "canceled"))
    assert quotas(api)["images"]["used"] == 0


def test_an_operator_sees_all_keys_that_use_something(api_of: Callable[..., TestClient]) -> None:
    api = api_of(weight=2.0)
    for name, count in (("me", 2), ("you", 1)):
        for _ in range(count):
            assert api.post("/generate", json={}, headers=as_(name)).status_code == 202
    refused = api.get("/usage/keys")
    assert refused.status_code == 403
    assert "operator" in refused.json()["detail"]
    found = api.get("/usage/keys", headers=as_("boss")).json()["keys"]
    assert [(each["key"], each["weight"]) for each in found] == [("me", 2.0), ("you", 1.0)]
    assert [quota["used"] for each in found for quota in each["quotas"] if quota["name"] == "jobs_per_key"] == [2, 1]


def test_without_keys_usage_shows_the_queue_of_all_callers(
    make_client: Callable[..., TestClient], fake_worker: Any
) -> None:
    fake_worker.serve()
    api = make_client(max_queue=10)
    assert api.post("/generate", json={}).status_code == 202
    usage = api.get("/usage").json()
    assert (usage["key"], usage["weight"]) == ("", 1.0)
    assert usage["quotas"][0] == {"name": "jobs", "allowed": 10, "used": 1, "left": 9, "resets_in": None}
    assert api.get("/usage/keys").status_code == 200


@pytest.mark.parametrize("kind", ["string", "list"])
def test_damaged_counters_refuse_nobody(api_of: Callable[..., TestClient], client: Any, kind: str) -> None:
    api = api_of(per_day=1000, images=10)
    for key in ("denoised:usage:me", "denoised:kept:me"):
        client.delete(key)
        client.set(key, "x") if kind == "string" else client.lpush(key, "x")
    assert api.post("/generate", json={}).status_code == 202
    client.hset("denoised:usage:me", mapping={"60:window": "x", "86400:used": "nan"})
    client.zadd("denoised:kept:me", {"what": 9e9, "a:b": 9e9})
    assert api.post("/generate", json={}).status_code == 202
    assert api.get("/usage").status_code == 200
