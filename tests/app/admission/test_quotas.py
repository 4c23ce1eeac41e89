"""Quotas in total and per key, and Retry-After."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from denoised.app.admission.quotas import Admission, Load
from denoised.app.http.api_keys import KeyRing
from denoised.app.http.errors import TooBusy
from denoised.app.settings import ApiSettings
from denoised.jobs.worker_report import WorkerReport

MakeClient = Callable[..., TestClient]


def worker(speed: float | None) -> WorkerReport:
    return WorkerReport("w", [{"name": "m"}], 16, 0, 0, speed)


def retry_after(
    admission: Admission, load: Load, queues: dict[str, list[Load]], speed: float | None = 10.0
) -> int | None:
    """Retry-After in seconds; None when the job fits."""
    try:
        admission.check(load, [], queues, [worker(speed)])
    except TooBusy as busy:
        return int(busy.headers["Retry-After"])
    return None


def queue(*evaluations: int, owner: str = "me") -> list[Load]:
    return [Load(f"{owner}-{k}", owner, count) for k, count in enumerate(evaluations)]


def test_waiting_work_may_reach_the_limit_but_not_exceed_it() -> None:
    admission = Admission(ApiSettings(queue_limit=100))
    assert retry_after(admission, Load("x", "me", 40), {"m": queue(30, 30)}) is None
    assert retry_after(admission, Load("x", "me", 41), {"m": queue(30, 30)}) is not None
    assert retry_after(admission, Load("x", "me", 41), {"m": queue(30), "o": queue(30, owner="you")}) is not None


def test_a_job_larger_than_the_limit_is_accepted_into_an_empty_queue() -> None:
    """Otherwise it would be refused forever."""
    admission = Admission(ApiSettings(queue_limit=100))
    assert retry_after(admission, Load("x", "me", 1000), {"m": []}) is None
    assert retry_after(admission, Load("x", "me", 1000), {"m": queue(1)}) == 1


def test_retry_after_is_the_time_of_the_work_that_has_to_leave() -> None:
    admission = Admission(ApiSettings(queue_limit=100))
    assert retry_after(admission, Load("x", "me", 20), {"m": queue(50, 50)}) == 5  # the first 50, at 10 per second
    assert retry_after(admission, Load("x", "me", 60), {"m": queue(50, 50)}) == 10
    assert retry_after(admission, Load("x", "me", 20), {"m": queue(50, 50)}, speed=None) == 10
    assert retry_after(admission, Load("x", "me", 20), {"m": queue(50, 50)}, speed=0.001) == 3600


def test_work_of_a_large_model_takes_as_long_as_its_own_turns() -> None:
    admission = Admission(ApiSettings(queue_limit=100))
    paces = {"large": [(1.0, 2.0), (16.0, 32.0)], "small": [(1.0, 0.001), (16.0, 0.016)]}
    names = ("large", "small", "new")
    report = WorkerReport("w", [{"name": name} for name in names], 16, 0, 0, 10.0, paces=paces)
    for model, seconds in (("large", 100), ("small", 1), ("new", 5)):
        waiting = [replace(load, model=model) for load in queue(50, 50)]
        with pytest.raises(TooBusy) as busy:
            admission.check(Load("x", "me", 20), [], {model: waiting}, [report])
        assert busy.value.headers["Retry-After"] == str(seconds), "50 evaluations have to leave"


def test_a_key_has_its_own_limit_and_waits_for_the_work_ahead_of_its_jobs() -> None:
    admission = Admission(ApiSettings(queue_limit_per_key=100, api_keys=KeyRing.from_keys(["one", "two"])))
    mixed = [*queue(300, owner="you"), *queue(60, 40)]
    assert retry_after(admission, Load("x", "me", 1), {"m": mixed}) == 36
    assert retry_after(admission, Load("x", "you", 1), {"m": mixed}) == 30
    assert retry_after(admission, Load("x", "they", 100), {"m": mixed}) is None


def test_small_jobs_count_toward_the_job_limit() -> None:
    admission = Admission(ApiSettings(max_queue=3))
    assert retry_after(admission, Load("x", "me", 1), {"m": queue(10, 10)}) is None
    assert retry_after(admission, Load("x", "me", 1), {"m": queue(10, 20, 30)}) == 1


def test_pending_jobs_count_until_they_are_queued() -> None:
    admission = Admission(ApiSettings(queue_limit=100))
    first, second = Load("a", "me", 60), Load("b", "me", 60)
    with admission.accepting(first) as before:
        assert before == []
        with admission.accepting(second) as before:
            assert before == [first]
            with pytest.raises(TooBusy):
                admission.check(second, before, {"m": []}, [worker(10.0)])
            with pytest.raises(TooBusy):
                admission.check(second, before, {"m": [first]}, [worker(10.0)])
            admission.check(Load("c", "me", 40), before, {"m": [first]}, [worker(10.0)])  # counted once
    with admission.accepting(second) as before:
        assert before == []


def test_concurrent_requests_do_not_exceed_the_limit_together(make_client: MakeClient, fake_worker: Any) -> None:
    """pytorch/serve#2764: fill to the limit, send fifty more."""
    fake_worker.serve(speed=100.0)
    api = make_client(queue_limit=200)
    together = threading.Barrier(16)

    def post(k: int) -> int:
        if k < 16:
            together.wait()
        answer = api.post("/generate", json={"steps": 20, "seed": k})
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= 2
            assert answer.headers["content-type"] == "application/problem+json"
        return answer.status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(post, range(60)))
    assert set(statuses) == {202, 429}
    assert statuses.count(202) == len(api.get("/jobs?limit=100").json()["jobs"]) <= 10
    while (more := api.post("/generate", json={"steps": 20}).status_code) == 202:
        pass
    assert more == 429
    assert len(api.get("/jobs?limit=100").json()["jobs"]) == 10, "and the limit itself is reached"


def test_one_key_cannot_fill_the_queue_for_others(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve(speed=100.0)
    api = make_client(keys=("one", "two"), queue_limit=1000, queue_limit_per_key=50)
    mine = [api.post("/generate", json={"steps": 20}).status_code for _ in range(4)]
    assert mine == [202, 202, 429, 429]
    refused = api.post("/generate", json={"steps": 20}).json()
    assert "40 evaluations of this key are waiting" in refused["detail"]
    assert "allowed: 50" in refused["detail"]
    yours = api.post("/generate", json={"steps": 20}, headers={"Authorization": "Bearer two"})
    assert yours.status_code == 202


def test_one_key_cannot_fill_the_queue_with_small_jobs(make_client: MakeClient, fake_worker: Any) -> None:
    """1,000 of its jobs left nothing but 429 to everybody else."""
    fake_worker.serve()
    api = make_client(keys=("one", "two"), max_queue=10)
    body = {"steps": 1}
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    statuses = [api.post("/generate", json=body, headers=one).status_code for _ in range(7)]
    assert statuses == [202] * 5 + [429] * 2
    refused = api.post("/generate", json=body, headers=one)
    assert refused.json()["detail"] == "5 jobs of this key are waiting (allowed: 5)"
    assert int(refused.headers["retry-after"]) >= 1
    assert [api.post("/generate", json=body, headers=two).status_code for _ in range(6)] == [202] * 5 + [429]
    assert 'limit="jobs_per_key"} 3.0' in api.get("/metrics").text


@pytest.mark.parametrize(("most", "share", "expected"), [(1000, None, 500), (1, None, 1), (3, None, 1), (10, 9, 9)])
def test_the_share_of_a_key_is_half_of_the_queue_unless_set(most: int, share: int | None, expected: int) -> None:
    assert ApiSettings(max_queue=most, max_queue_per_key=share).queue_share == expected


def test_without_keys_the_whole_queue_is_for_everybody(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    api = make_client(max_queue=4)
    assert [api.post("/generate", json={"steps": 1}).status_code for _ in range(5)] == [202] * 4 + [429]
    assert "4 jobs are waiting (allowed: 4)" in api.post("/generate", json={"steps": 1}).json()["detail"]


def test_the_jobs_of_a_key_that_have_to_leave_set_its_retry_after() -> None:
    keys = KeyRing.from_keys(["one", "two"])
    admission = Admission(ApiSettings(max_queue_per_key=2, api_keys=keys))
    mixed = [*queue(100, owner="you"), *queue(20, 30)]
    assert retry_after(admission, Load("x", "me", 1), {"m": mixed}) == 12
    assert retry_after(admission, Load("x", "they", 1), {"m": mixed}) is None
