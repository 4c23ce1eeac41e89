"""Redis answers, but with an error: the front end says so and keeps reading, workers wait, no end of a job is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.faults.site import API_SECONDS, Site
from tests.faults.test_redis_outage import BODY, REQUESTS
from tests.refusals import ALL

REFUSED_SECONDS = 1.5
QUICK = ("MISCONF Redis", "NOPERM this", "OOM")


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with one worker that all of these tests use, so that each shows that both programs go on afterwards."""
    with ExitStack() as stack:
        site = Site(tmp_path_factory.mktemp("refusals"), stack)
        site.harness.worker("fake", seconds=0.02, lease=10.0)
        site.ready()
        yield site


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        (kind, reply) if reply.startswith(QUICK) else pytest.param(kind, reply, marks=pytest.mark.faults)
        for kind, reply in ALL
    ],
)
def test_a_refusal_is_answered_and_delays_jobs_but_ends_none(
    kind: str, reply: str, shared_site: Site, report: Callable[..., None]
) -> None:
    """bull#540, redis#9913: from the API 503 with Retry-After (507 for memory); the worker neither ends nor loses the
    job's end, and needs no further attempt."""
    site, harness = shared_site, shared_site.harness
    job_id = harness.submit(steps=80)
    harness.until(lambda: harness.running(job_id), "the job to run")
    slowest = 0.0
    with site.api.client() as client:
        site.proxy.refusal = reply
        end = time.monotonic() + REFUSED_SECONDS
        try:
            for request in REQUESTS:
                started = time.monotonic()
                answer = request(client, job_id)
                slowest = max(slowest, time.monotonic() - started)
                full = kind == "full" and not answer.request.url.path.endswith("/readyz")
                assert answer.status_code == (507 if full else 503), (answer.request.url, answer.text)
                assert full or answer.request.url.path.endswith("/readyz") or "retry-after" in answer.headers
            assert client.get("/healthz").status_code == 200
            time.sleep(max(0.0, end - time.monotonic()))
        finally:
            site.proxy.refusal = None
        record = harness.finished(job_id)
        assert (record.status, record.attempt) == ("succeeded", 1)
        harness.until(lambda: client.get("/readyz").status_code == 200, "readiness")
        assert client.post("/generate", json=BODY, headers={"Prefer": "wait=30"}).status_code == 200
    assert all(worker.exit_code() is None for worker in harness.workers)
    report(reply=reply.split()[0], slowest_answer_seconds=round(slowest, 2))
    assert slowest < API_SECONDS
