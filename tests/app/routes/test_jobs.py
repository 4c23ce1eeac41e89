"""The routes for accepted jobs, over a store that a fake worker fills."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer
from starlette.testclient import TestClient, WebSocketDenialResponse

from denoised.app.http.schemas import JobList, JobObject
from denoised.jobs.store.update import JobUpdate

MakeClient = Callable[..., TestClient]


def valid(job: dict[str, Any]) -> JobObject:
    """Check that a job has exactly the members that the OpenAPI document lists."""
    assert set(job) == set(JobObject.model_fields)
    return JobObject.model_validate(job, strict=True)


def rq_queue(client: redis.Redis) -> Queue:
    return Queue("shoes", connection=client, serializer=JSONSerializer)


def test_a_job_is_shown_in_every_state(api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.create(n=1, seed=40, label=0, label_name="sneaker")
    queued = valid(api.get(f"/jobs/{job_id}").json())
    assert (queued.status, queued.label, queued.started_at, queued.images) == ("queued", "sneaker", None, [])
    attempt = fake_worker.start(job_id)
    fake_worker.progress(job_id, attempt, 5)
    running = valid(api.get(f"/jobs/{job_id}").json())
    assert (running.status, running.progress.step, running.progress.fraction) == ("running", 5, 0.25)
    assert running.queue_position is None
    assert running.eta_seconds is not None
    fake_worker.finish(job_id, attempt)
    done = valid(api.get(f"/jobs/{job_id}").json())
    assert (done.status, done.error, done.attempt, done.numerics) == ("succeeded", None, 1, "fake")
    assert [image.url for image in done.images] == [f"/jobs/{job_id}/images/0"]
    assert done.timing.running is not None
    assert done.timing.mean_batch == 1.5
    assert api.get(done.links.self).json()["id"] == job_id


def test_a_failed_job_has_its_error(api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.create()
    write = JobUpdate(job_id, fake_worker.start(job_id), 1)
    write.end("failed", {"code": "nan_output", "message": "the network's output is not finite at step 3"})
    fake_worker.store.write(write)
    job = valid(api.get(f"/jobs/{job_id}").json())
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "nan_output"


def test_a_queued_job_has_its_position(api: TestClient) -> None:
    ids = [api.post("/generate", json={"seed": k}).json()["id"] for k in range(3)]
    jobs = [valid(api.get(f"/jobs/{job_id}").json()) for job_id in ids]
    assert [job.queue_position for job in jobs] == [0, 1, 2]
    assert len(set(ids)) == 3


def test_jobs_are_listed_newest_first_until_the_last_page(api: TestClient, fake_worker: Any) -> None:
    made = [fake_worker.create(at=1000.0 + k / 3) for k in range(7)]
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        answer = api.get("/jobs", params={"limit": 3, **({"cursor": cursor} if cursor else {})})
        page = JobList.model_validate(answer.json())
        found += [job.id for job in page.jobs]
        cursor, pages = page.next_cursor, pages + 1
    assert found == made[::-1]
    assert pages == 3


def test_jobs_created_at_one_time_are_each_listed_once(api: TestClient, fake_worker: Any) -> None:
    made = sorted(fake_worker.create(at=1000.5) for _ in range(5))
    found, params = [], {"limit": 2}
    for _ in range(3):
        answer = api.get("/jobs", params=params).json()
        found += [job["id"] for job in answer["jobs"]]
        params["cursor"] = answer["next_cursor"]
    assert found == made[::-1]
    assert params["cursor"] is None


@pytest.mark.parametrize("looked_at", [1000, 4])
def test_jobs_of_one_status_are_listed_page_by_page(
    looked_at: int, api: TestClient, fake_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a request reads so few jobs that some pages are empty."""
    monkeypatch.setattr("denoised.app.job_access.job_pages.MAX_READ", looked_at)
    monkeypatch.setattr("denoised.app.job_access.job_pages.STRIDE", 2)
    made = [(fake_worker.succeeded if k in (0, 1, 2, 12) else fake_worker.create)(at=1000.0 + k / 3) for k in range(14)]
    found, cursor, sizes = [], None, []
    while not sizes or cursor is not None:
        params = {"limit": 2, "status": "succeeded", **({"cursor": cursor} if cursor else {})}
        page = JobList.model_validate(api.get("/jobs", params=params).json())
        assert {job.status for job in page.jobs} <= {"succeeded"}
        found += [job.id for job in page.jobs]
        sizes.append(len(page.jobs))
        cursor = page.next_cursor
    assert found == [made[k] for k in (12, 2, 1, 0)]
    assert max(sizes) <= 2
    assert (0 in sizes) == (looked_at == 4)
    assert api.get("/jobs", params={"status": "failed"}).json()["jobs"] == []


def test_jobs_of_one_model_and_since_a_moment_are_listed(
    api: TestClient, fake_worker: Any, card_of: Callable[..., Any]
) -> None:
    fake_worker.serve(card_of(), card_of(name="hats"))
    shoes, hats = ([api.post("/generate", json={"model": name}).json() for _ in range(3)] for name in ("shoes", "hats"))

    def listed(**params: object) -> list[str]:
        answer = api.get("/jobs", params=params).json()  # type: ignore[arg-type]
        return [job["id"] for job in answer["jobs"]]

    assert listed(model="shoes") == [job["id"] for job in reversed(shoes)]
    assert listed(model="hats", limit=2) == [job["id"] for job in hats[:0:-1]]
    assert listed(model="socks") == []
    since = shoes[2]["created_at"]
    assert listed(since=since) == [job["id"] for job in [*hats[::-1], shoes[2]]]
    assert listed(since=since, model="shoes", status="queued") == [shoes[2]["id"]]
    assert listed(since=hats[2]["created_at"] + 1) == []
    pages, cursor = [], None
    while True:
        page = api.get("/jobs", params={"since": since, "limit": 1, **({"cursor": cursor} if cursor else {})}).json()
        pages += page["jobs"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert [job["id"] for job in pages] == listed(since=since)


@pytest.mark.parametrize(
    "params",
    [
        {"since": "nan"},
        {"since": "-1"},
        {"since": "1.1e11"},
        {"since": "yesterday"},
        {"model": ""},
        {"model": "m" * 201},
    ],
)
def test_a_wrong_filter_is_refused(api: TestClient, params: dict[str, str]) -> None:
    answer = api.get("/jobs", params=params)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == list(params)


def test_an_unknown_status_is_refused_with_the_known_ones(api: TestClient) -> None:
    (error,) = api.get("/jobs", params={"status": "lost"}).json()["errors"]
    assert error["field"] == "status"
    assert all(word in error["message"] for word in ("lost", "queued", "canceled"))


def test_a_listing_without_jobs_is_empty(api: TestClient) -> None:
    assert api.get("/jobs").json() == {"jobs": [], "next_cursor": None}


def test_the_etag_of_a_picture_is_its_hash(api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.succeeded(seed=40)
    answer = api.get(f"/jobs/{job_id}/images/0")
    sha256 = hashlib.sha256(answer.content).hexdigest()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["etag"] == f'"{sha256}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert api.get(f"/jobs/{job_id}").json()["images"][0]["sha256"] == sha256


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_a_picture_has_the_media_type_of_its_format(format: str, api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.succeeded(format=format)
    assert api.get(f"/jobs/{job_id}/images/0").headers["content-type"] == f"image/{format}"


def test_a_picture_that_the_client_has_is_a_304(api: TestClient, fake_worker: Any) -> None:
    path = f"/jobs/{fake_worker.succeeded()}/images/0"
    etag = api.get(path).headers["etag"]
    for known in (etag, f'"other", {etag}'):
        answer = api.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    assert api.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_an_unfinished_picture_is_not_found(api: TestClient, fake_worker: Any) -> None:
    done, queued = fake_worker.succeeded(), fake_worker.create()
    for path in (f"/jobs/{queued}/images/0", f"/jobs/{done}/images/1", f"/jobs/{done}/images/-1"):
        assert api.get(path).status_code == 404


def test_a_canceled_job_leaves_the_queue_and_repeating_is_harmless(api: TestClient, client: redis.Redis) -> None:
    """cog#2212."""
    first, second = (api.post("/generate", json={}).json()["id"] for _ in range(2))
    answer = api.delete(f"/jobs/{first}")
    assert answer.status_code == 200
    job = valid(answer.json())
    assert (job.status, job.queue_position) == ("canceled", None)
    assert rq_queue(client).get_job_ids() == [second]
    assert not Job.exists(first, connection=client)
    assert api.delete(f"/jobs/{first}").json() == answer.json()


def test_a_running_job_is_canceled_once(api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.create()
    attempt = fake_worker.start(job_id)
    assert api.delete(f"/jobs/{job_id}").json()["status"] == "canceled"
    assert not fake_worker.store.write(JobUpdate(job_id, attempt, 1, fields={"step": 9}))
    assert [event["type"] for event in fake_worker.store.events.read(job_id)] == ["queued", "started", "canceled"]


def test_a_job_whose_worker_has_just_died_can_be_canceled(api: TestClient, client: redis.Redis) -> None:
    """RQ's own deletion raises while the dead worker's execution has only partly expired (rq 3.0.0)."""
    job_id = api.post("/generate", json={}).json()["id"]
    rq_job = Job.fetch(job_id, connection=client, serializer=JSONSerializer)
    with client.pipeline() as pipeline:
        execution = Execution.create(rq_job, ttl=60, pipeline=pipeline)
        pipeline.execute()
    client.delete(execution.key)
    assert api.delete(f"/jobs/{job_id}").status_code == 200


def test_a_job_that_has_ended_cannot_be_canceled(api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.succeeded()
    answer = api.delete(f"/jobs/{job_id}")
    assert answer.status_code == 409
    assert answer.json()["job"] == job_id
    assert "succeeded" in answer.json()["detail"]
    assert api.get(f"/jobs/{job_id}").json()["status"] == "succeeded"


@pytest.mark.parametrize("tail", ["", "/images/0", "/events", "/animation"])
def test_an_unknown_job_and_another_callers_job_are_answered_alike(
    tail: str, make_client: MakeClient, fake_worker: Any
) -> None:
    api = make_client(keys=("mine",))
    theirs = fake_worker.succeeded(owner="somebody else")
    unknown = "f" * 32
    same = {"X-Request-Id": "same"}
    answers = [api.get(f"/jobs/{job_id}{tail}", headers=same) for job_id in (theirs, unknown)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].text.replace(theirs, "*") == answers[1].text.replace(unknown, "*")
    assert api.delete(f"/jobs/{theirs}").status_code == 404


WRONG: list[tuple[str, dict[str, str]]] = [
    ("images/x", {}),
    ("animation?format=mp4", {}),
    ("animation?kind=x1&sheet=maybe", {}),
    ("events?after=x", {}),
    ("events?affter=1", {}),
]


@pytest.mark.parametrize(("place", "headers"), WRONG, ids=[f"{place} {headers}" for place, headers in WRONG])
def test_an_unknown_job_is_a_404_before_any_other_error(
    place: str, headers: dict[str, str], api: TestClient, fake_worker: Any
) -> None:
    ours, theirs = fake_worker.succeeded(), fake_worker.succeeded(owner="somebody else")
    assert api.get(f"/jobs/{ours}/{place}", headers=headers).status_code == 422
    for job_id in ("nobody", theirs):
        answer = api.get(f"/jobs/{job_id}/{place}", headers=headers)
        assert answer.status_code == 404, answer.text
        assert answer.json()["detail"] == f'job "{job_id}" not found'


def test_a_socket_to_an_unknown_job_is_denied(api: TestClient, fake_worker: Any) -> None:
    for job_id, status in (("nobody", 404), (fake_worker.succeeded(), 422)):
        path = f"ws://127.0.0.1:8000/jobs/{job_id}/events?after=x"
        with pytest.raises(WebSocketDenialResponse) as refused, api.websocket_connect(path):
            pass
        assert refused.value.status_code == status
