"""The primary is lost, a replica is promoted by Sentinel, and jobs go on there."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from denoised.jobs.errors import StoreUnavailable
from tests.faults.site import API_SECONDS, Api, status
from tests.faults.test_redis_outage import Follower
from tests.faults.test_worker_killed import check_events
from tests.harness import Harness
from tests.replicated_store import ReplicatedStore, client

RUNNING = {"sampler": "ddpm", "steps": 200, "label": 1, "seed": 3}
WAITING = {"model": "later", "steps": 20, "seed": 5}  # its worker starts after the failover


@pytest.mark.faults
@pytest.mark.parametrize("loss", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_accepted_jobs_finish_on_the_promoted_replica(
    loss: signal.Signals, tmp_path: Path, report: Callable[..., None]
) -> None:
    """One job runs and one waits when the primary is lost. A frozen one comes back, and is a replica then."""
    with ExitStack() as stack:
        store = ReplicatedStore(tmp_path, stack)
        harness = Harness(store.url, tmp_path)
        stack.callback(harness.close)
        api = Api(store.url, tmp_path / "api.log")
        api.start()
        stack.callback(api.close)
        worker = harness.worker("fake", seconds=0.02, lease=30.0)
        harness.until(lambda: status(api.url, "/readyz") == 200, "readiness")
        jobs = [harness.submit(**fields) for fields in (RUNNING, WAITING)]
        harness.until(lambda: harness.running(jobs[0]), "the job to run")
        follower = Follower(api, jobs[0])
        follower.start()
        client(store.primary).execute_command("WAIT", 1, 1000)
        store.primary.send(loss)
        lost = time.monotonic()
        answers, accepted = _post_until_accepted(api)
        writable = time.monotonic() - lost
        assert client(store.replica).role()[0] == "master"
        if loss == signal.SIGSTOP:
            store.primary.send(signal.SIGCONT)
        harness.until(lambda: _answers(harness), "the store")
        harness.worker("later", lease=30.0)
        done = [harness.sha256(job) for job in jobs]
        assert harness.job(jobs[0]).attempt == 1, "its worker has waited and gone on"
        assert done == [harness.sha256(harness.submit(**fields)) for fields in (RUNNING, WAITING)]
        assert harness.finished(accepted).status == "succeeded"
        for job in jobs:
            check_events(harness.events(job))
        follower.join(20)
        assert [each["seq"] for each in follower.events] == [each["seq"] for each in harness.events(jobs[0])]
        if loss == signal.SIGSTOP:
            harness.until(lambda: client(store.primary).role()[0] == "slave", "the old primary to follow")
            harness.until(lambda: client(store.primary).exists(f"denoised:job:{accepted}"), "its copy")
        assert worker.exit_code() is None
        report(loss=loss.name, writable_after_seconds=round(writable, 2), answers=dict(answers))


def _post_until_accepted(api: Api) -> tuple[Counter[int], str]:
    """Post until a job is accepted: the statuses, and that job's id. The rest is 503 with Retry-After, and in time."""
    answers: Counter[int] = Counter()
    with api.client() as poster:
        while True:
            asked = time.monotonic()
            answer: httpx.Response = poster.post("/generate", json={"model": "fake", "steps": 5})
            assert time.monotonic() - asked < API_SECONDS
            answers[answer.status_code] += 1
            assert answers.total() < 1000
            if answer.status_code == 202:
                return answers, answer.json()["id"]
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
            time.sleep(0.05)


def _answers(harness: Harness) -> bool:
    try:
        harness.store.ping()
    except StoreUnavailable:
        return False
    return True
