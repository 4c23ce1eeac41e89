"""`POST /generate`: one job per request or per Idempotency-Key, none when the queue is full."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer
from starlette.testclient import TestClient

from denoised.app.admission.queue.job_queue import MAX_FORECAST_AGE
from denoised.app.admission.queue.queue_snapshot import QueueSnapshot
from denoised.app.http.schemas import JobObject
from denoised.app.services import Services
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.redis.memory import Memory
from denoised.jobs.worker_report import WorkerReport

MakeClient = Callable[..., TestClient]


def key(text: str) -> dict[str, str]:
    return {"Idempotency-Key": text}


def test_an_accepted_request_returns_its_job_and_location(api: TestClient) -> None:
    answer = api.post("/generate", json={"label": "sneaker", "seed": 7})
    assert answer.status_code == 202
    job = JobObject.model_validate_json(answer.text, strict=True)
    assert answer.headers["location"] == job.links.self == f"/jobs/{job.id}"
    assert (job.status, job.seed, job.model, job.steps, job.guidance_scale) == ("queued", 7, "shoes", 20, 2.5)
    assert api.get(answer.headers["location"]).json() == answer.json()


def test_a_record_names_the_model_that_it_was_accepted_for(
    make_client: MakeClient, fake_worker: Any, card_of: Any
) -> None:
    fake_worker.serve(card_of(digest="1a2b"))
    job_id = make_client().post("/generate", json={}).json()["id"]
    record = fake_worker.store.job(job_id)
    assert record is not None
    assert record.digest == "1a2b"


def test_a_random_seed_is_returned(api: TestClient) -> None:
    assert len({api.post("/generate", json={}).json()["seed"] for _ in range(5)}) > 1


def test_rq_stores_only_the_job_id(api: TestClient, services: Services, client: redis.Redis) -> None:
    job_id = api.post("/generate", json={"label": "ботинок"}).json()["id"]
    rq_job = Job.fetch(job_id, connection=client, serializer=JSONSerializer)
    assert json.loads(rq_job.data) == ["denoised.sample", None, [], {}]
    assert rq_job.retries_left is None
    record = services.store.job(job_id)
    assert record is not None
    assert record.max_attempts == services.settings.max_attempts == 3


def test_concurrent_posts_each_create_a_job(api: TestClient, client: redis.Redis) -> None:
    """vllm-omni#1080."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda k: api.post("/generate", json={"seed": k}), range(64)))
    assert {answer.status_code for answer in answers} == {202}
    jobs = {answer.json()["id"]: answer.json()["seed"] for answer in answers}
    assert sorted(jobs.values()) == list(range(64))
    assert Queue("shoes", connection=client).count == 64
    assert all(api.get(f"/jobs/{job_id}").json()["seed"] == seed for job_id, seed in list(jobs.items())[:8])


def test_the_same_key_and_body_return_the_same_job(api: TestClient, client: redis.Redis) -> None:
    first = api.post("/generate", json={"label": 0, "n": 2}, headers=key("k"))
    again = api.post(
        "/generate", content=b'{"n": 2, "label": 0}', headers={"Content-Type": "application/json", **key("k")}
    )
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["seed"] == first.json()["seed"]
    assert Queue("shoes", connection=client).count == 1


def test_equivalent_bodies_with_one_key_return_the_same_job(api: TestClient, client: redis.Redis) -> None:
    """Explicit defaults, nulls, and Accept: image/png where png is the default do not change the body."""
    first = api.post("/generate", json={"label": 0}, headers=key("k")).json()
    for defaults in ({"n": 1, "preview_every": 0}, dict.fromkeys(["n", "preview_every", "preview", "format", "seed"])):
        again = api.post("/generate", json={"label": 0, **defaults}, headers=key("k"))
        assert again.json()["id"] == first["id"]
    picture = api.post("/generate", json={"label": 0}, headers={**key("k"), "Accept": "image/png", "Prefer": "wait=0"})
    assert (picture.status_code, picture.json()["job"]) == (504, first["id"])
    assert Queue("shoes", connection=client).count == 1


def test_a_replay_is_answered_without_a_live_worker(api: TestClient, client: redis.Redis) -> None:
    first = api.post("/generate", json={"label": 0}, headers=key("k")).json()
    client.delete("denoised:workers")
    time.sleep(1.1)  # until the cached reports expire
    assert api.post("/generate", json={"label": 0}, headers=key("new")).status_code == 503
    assert api.post("/generate", json={"label": 0}, headers=key("k")).json()["id"] == first["id"]


def test_concurrent_equal_posts_with_one_key_create_one_job(api: TestClient, client: redis.Redis) -> None:
    for k in range(20):
        together = threading.Barrier(2)

        def post(_: int, together: threading.Barrier = together, name: str = f"key-{k}") -> dict[str, Any]:
            together.wait()
            answer = api.post("/generate", json={"label": 1}, headers=key(name))
            assert answer.status_code == 202, answer.text
            found: dict[str, Any] = answer.json()
            return found

        with ThreadPoolExecutor(2) as pool:
            one, two = pool.map(post, range(2))
        assert (one["id"], one["seed"]) == (two["id"], two["seed"])
        assert Queue("shoes", connection=client).count == k + 1


def test_the_same_key_with_another_body_is_refused(api: TestClient) -> None:
    api.post("/generate", json={"seed": 1}, headers=key("k"))
    answer = api.post("/generate", json={"seed": 2}, headers=key("k"))
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == "Idempotency-Key"
    assert error["message"].startswith('"k" was used within 24 h with another body')


def test_an_idempotency_key_belongs_to_its_caller(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    api = make_client(keys=("one", "two"))
    mine = api.post("/generate", json={}, headers=key("k")).json()
    yours = api.post("/generate", json={"n": 2}, headers={**key("k"), "Authorization": "Bearer two"})
    assert yours.status_code == 202
    assert yours.json()["id"] != mine["id"]


def test_a_claim_whose_process_died_is_fulfilled_by_the_next_request(api: TestClient, client: redis.Redis) -> None:
    """The process that claimed it was killed between the two writes."""
    first = api.post("/generate", json={}, headers=key("k")).json()["id"]
    client.delete("rq:queue:shoes", *client.scan_iter(f"*{first}*"))
    again = api.post("/generate", json={}, headers=key("k"))
    assert again.status_code == 202
    assert api.get(f"/jobs/{again.json()['id']}").status_code == 200


def test_a_full_queue_is_refused_with_retry_after(make_client: MakeClient, fake_worker: Any) -> None:
    """pytorch/serve#2764."""
    fake_worker.serve(speed=10.0)
    api = make_client(max_queue=3)
    accepted = [api.post("/generate", json={"steps": 100}) for _ in range(3)]
    refused = [api.post("/generate", json={"steps": 100}) for _ in range(5)]
    assert {answer.status_code for answer in accepted} == {202}
    assert {answer.status_code for answer in refused} == {429}
    assert {answer.headers["content-type"] for answer in refused} == {"application/problem+json"}
    assert 10 <= int(refused[0].headers["retry-after"]) <= 60
    assert len(api.get("/jobs").json()["jobs"]) == 3
    api.delete(f"/jobs/{accepted[0].json()['id']}")
    assert api.post("/generate", json={}).status_code == 202


def test_the_estimate_is_the_work_ahead_divided_by_the_measured_speed(
    make_client: MakeClient, fake_worker: Any
) -> None:
    fake_worker.serve(speed=50.0)
    api = make_client()
    jobs = [api.post("/generate", json={"steps": 100, "n": k + 1}).json() for k in range(3)]
    assert [job["queue_position"] for job in jobs] == [0, 1, 2]
    expected = [100 / 50, 300 / 50, 600 / 50]
    assert [job["eta_seconds"] for job in jobs] == pytest.approx(expected, abs=MAX_FORECAST_AGE), "less the age"
    guided = api.post("/generate", json={"steps": 100, "label": 0, "guidance_scale": 2}).json()
    assert guided["eta_seconds"] == pytest.approx(800 / 50, abs=MAX_FORECAST_AGE), (
        "guidance takes two evaluations a step"
    )


def test_a_job_has_no_eta_without_measurements(api: TestClient) -> None:
    assert api.post("/generate", json={}).json()["eta_seconds"] is None


def test_prefer_wait_returns_the_unfinished_job_on_timeout(api: TestClient) -> None:
    answer = api.post("/generate", json={}, headers={"Prefer": "wait=0"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=0"
    assert answer.json()["status"] == "queued"


def finish_next(services: Services, fake_worker: Any) -> None:
    """Finish the first job that is queued, as a worker would."""
    end = time.monotonic() + 60
    while not (ids := Queue("shoes", connection=services.store.client).get_job_ids()):
        assert time.monotonic() < end
        time.sleep(0.01)
    fake_worker.finish(ids[0], fake_worker.start(ids[0]))


WAITS = [
    ("wait=60", "wait=60"),
    ("respond-async, wait=30", "wait=30"),
    ("wait", "wait=60"),
    ("wait=9999999999", "wait=60"),
]


@pytest.mark.parametrize(("prefer", "applied"), WAITS)
def test_prefer_wait_returns_the_finished_job(
    prefer: str, applied: str, api: TestClient, services: Services, fake_worker: Any
) -> None:
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(finish_next, services, fake_worker)
        answer = api.post("/generate", json={}, headers={"Prefer": prefer})
        working.result()
    assert answer.status_code == 200
    assert answer.json()["status"] == "succeeded"
    assert answer.headers["preference-applied"] == applied


def test_accept_returns_the_picture(api: TestClient, services: Services, fake_worker: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(finish_next, services, fake_worker)
        answer = api.post("/generate", json={"seed": 9}, headers={"Accept": "image/webp"})
        working.result()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["x-seed"] == "9"
    assert "preference-applied" not in answer.headers, "none was named"
    assert api.get(f"/jobs/{answer.headers['x-job-id']}").json()["format"] == "webp"


@pytest.mark.parametrize(("body", "format"), [({}, "png"), ({"format": "jpeg"}, "jpeg")])
def test_accept_any_image_returns_png_or_the_format_of_the_body(
    body: dict[str, Any], format: str, api: TestClient, services: Services, fake_worker: Any
) -> None:
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(finish_next, services, fake_worker)
        answer = api.post("/generate", json=body, headers={"Accept": "image/*", "Prefer": "wait=20"})
        working.result()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"image/{format}"
    assert answer.headers["preference-applied"] == "wait=20"


def test_a_picture_that_is_not_ready_in_time_is_a_504_that_names_the_job(api: TestClient) -> None:
    answer = api.post("/generate", json={}, headers={"Accept": "image/png", "Prefer": "wait=0"})
    assert answer.status_code == 504
    job = answer.json()["job"]
    assert answer.headers["location"] == f"/jobs/{job}"
    assert answer.headers["preference-applied"] == "wait=0"
    assert api.get(f"/jobs/{job}").json()["status"] == "queued"


def test_accept_requires_one_image_in_an_accepted_format(api: TestClient) -> None:
    for body in ({"n": 2}, {"format": "webp"}):
        assert api.post("/generate", json=body, headers={"Accept": "image/png"}).status_code == 422


def test_an_unserved_model_is_a_503_and_an_unknown_one_a_422(
    make_client: MakeClient, fake_worker: Any, card_of: Any
) -> None:
    fake_worker.serve(card_of(), card_of(name="hats"))
    fake_worker.store.workers.remove("worker-1")
    api = make_client()
    for body in ({}, {"model": "hats"}, {"model": "unheard-of"}):
        assert api.post("/generate", json=body).status_code == 503
    assert "hats" in api.post("/generate", json={"model": "hats"}).json()["detail"]
    fake_worker.serve(card_of())
    unserved = api.post("/generate", json={"model": "hats"})
    assert unserved.status_code == 503
    assert "hats" in unserved.json()["detail"]
    unknown = api.post("/generate", json={"model": "unheard-of"})
    assert unknown.status_code == 422
    assert unknown.json()["errors"][0]["field"] == "model"


def test_a_store_without_memory_accepts_nothing_and_answers_507(api: TestClient, client: redis.Redis) -> None:
    """rq#1280: 507, and no part of the job is stored."""
    before = api.post("/generate", json={}).json()["id"]
    client.config_set("maxmemory", "1")
    try:
        answer = api.post("/generate", json={})
        shown = api.get(f"/jobs/{before}")
    finally:
        client.config_set("maxmemory", "0")
    assert answer.status_code == 507
    assert shown.json()["status"] == "queued"
    assert len(api.get("/jobs").json()["jobs"]) == 1
    assert Queue("shoes", connection=client).count == 1


def reads(client: redis.Redis) -> int:
    """The number of reads from connections that Redis counts."""
    return int(client.info("stats")["total_reads_processed"])


@pytest.mark.parametrize("headers", [{}, {"Prefer": "wait=0"}], ids=["plain", "wait=0"])
def test_a_job_is_accepted_in_three_round_trips(
    headers: dict[str, str], make_client: MakeClient, fake_worker: Any, client: redis.Redis
) -> None:
    """One for the queues, one for the running jobs, one transaction, while other jobs wait and run. `wait=0` needs no
    more."""
    fake_worker.serve(speed=100.0)
    api = make_client()
    running = api.post("/generate", json={}).json()["id"]
    client.zadd("rq:wip:shoes", {f"{running}:execution": time.time() + 60})
    client.lrem("rq:queue:shoes", 1, running)
    started = fake_worker.start(running)
    fake_worker.progress(running, started, 1)
    eta = api.post("/generate", json={}).json()["eta_seconds"]
    assert 0 < eta < 0.4, "one of the running job's twenty evaluations was made"
    best = 1000
    for _ in range(5):  # workers' reports are read once a second
        before = reads(client)
        for _ in range(10):
            assert api.post("/generate", json={}, headers=headers).status_code == 202
        best = min(best, reads(client) - before)
    assert best <= 10 * 3 + 1, "the last is the read of INFO itself"


def test_a_queue_without_redis_raises_store_unavailable(
    make_client: MakeClient, missing_redis_url: str, request_of: Any, card_of: Any
) -> None:
    services: Services = make_client(redis_url=missing_redis_url).app.state.services  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailable):
        services.queue.snapshot(["shoes"])
    worker = WorkerReport("w", [card_of().model_dump()], 16, 0, 0, 100.0)
    waiting, running = (JobRecord(name, "", request_of(), 0.0) for name in ("waiting", "running"))
    snapshot = QueueSnapshot(0.0, {"shoes": []}, {"shoes": [running]}, Memory(0, 0, "noeviction"))
    with pytest.raises(StoreUnavailable):
        services.queue.estimate_new(waiting, snapshot, [worker])


def test_a_connection_lost_during_the_transaction_accepts_nothing(
    services: Services, client: redis.Redis, estimate: QueueEstimate, request_of: Any
) -> None:
    """redis-py raises WatchError for a connection lost while a key is watched; no such job exists then."""
    record = JobRecord("torn", "", request_of(), time.time())
    reserve = services.store.reserve

    def broken(job_id: str, pipeline: Any) -> bool:
        free = reserve(job_id, pipeline)
        pipeline.connection._sock.shutdown(socket.SHUT_RDWR)
        return free

    services.store.reserve = broken  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable, match="broke before the job was accepted"):
        services.queue.enqueue_once(record, estimate)
    services.store.reserve = reserve  # type: ignore[method-assign]
    assert services.store.job("torn") is None
    assert services.queue.enqueue_once(record, estimate)
    assert not services.queue.enqueue_once(record, estimate)


def lose_replies(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, a transaction that accepts a job is executed, and the connection breaks before its reply."""
    execute = Pipeline.execute

    def executed(pipeline: Pipeline, *args: Any, **kwargs: Any) -> Any:
        accepts = any(command[0][0] == "XADD" for command in pipeline.command_stack)
        replies = execute(pipeline, *args, **kwargs)
        if accepts:
            raise redis.exceptions.ConnectionError("Connection reset by peer")
        return replies

    monkeypatch.setattr(Pipeline, "execute", executed)


@pytest.mark.parametrize("headers", [{}, key("k")])
def test_a_job_that_redis_did_not_confirm_is_named_in_the_answer(
    headers: dict[str, str], api: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "nothing was accepted, try again" would be wrong, and make a second job."""
    lose_replies(services, monkeypatch)
    answer = api.post("/generate", json={}, headers=headers)
    assert answer.status_code == 503
    problem = answer.json()
    assert problem["detail"] == f"Redis does not answer; job {problem['job']} may have been accepted, ask for it"
    assert answer.headers["location"] == f"/jobs/{problem['job']}"
    assert "retry-after" in answer.headers
    assert api.get(answer.headers["location"]).json()["status"] == "queued"


def test_a_client_that_waits_learns_of_its_job_when_redis_stops_answering(
    api: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(job_id: str, pictures: int = 0) -> None:
        raise StoreUnavailable("Redis does not answer (Timeout reading from socket)")

    monkeypatch.setattr(services.store, "outcome", outcome)
    monkeypatch.setattr("denoised.app.streaming.relay.POLL_SECONDS", 0.1)
    waiting = api.post("/generate", json={}, headers={"Prefer": "wait=60"})
    assert (waiting.status_code, waiting.json()["status"]) == (202, "queued")
    picture = api.post("/generate", json={}, headers={"Accept": "image/png"})
    job = picture.json()["job"]
    assert (picture.status_code, picture.headers["location"]) == (503, f"/jobs/{job}")
    assert picture.json()["detail"] == f"Redis does not answer; job {job} was accepted and continues"
    openai = api.post("/v1/images/generations", json={"prompt": "sneaker"})
    assert openai.status_code == 503
    assert "was accepted and continues" in openai.json()["error"]["message"]
    assert openai.headers["x-should-retry"] == "false"
    assert {api.get(f"/jobs/{each['id']}").json()["status"] for each in api.get("/jobs").json()["jobs"]} == {"queued"}
