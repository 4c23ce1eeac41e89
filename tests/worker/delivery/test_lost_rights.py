"""An operator takes rights from the user of a running worker, and gives them back: jobs wait, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from denoised.jobs.store.store import Store
from tests.harness import Harness

SECONDS = 0.6  # without the right


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Harness]:
    harness = Harness(valkey_url, tmp_path_factory.mktemp("rights"))
    harness.client.flushall()
    harness.worker("fake", seconds=0.01, lease=5.0)
    harness.finished(harness.submit())
    yield harness
    harness.close()


@pytest.fixture(scope="module")
def operator(valkey_url: str, harness: Harness) -> Iterator[redis.Redis]:
    """A client that keeps its rights; the worker and the harness are the default user."""
    harness.client.execute_command("ACL", "SETUSER", "operator", "on", "nopass", "+@all", "~*", "&*")
    client = redis.Redis(unix_socket_path=valkey_url.removeprefix("unix://"), username="operator", password="any")
    yield client
    client.execute_command("ACL", "SETUSER", "default", "+@all", "allkeys")
    client.execute_command("ACL", "DELUSER", "operator")
    client.close()


@pytest.mark.parametrize("rights", ["-hset", "-xadd", "-get", "-set", "-expire", "-zadd", "-evalsha", "-@write"])
def test_a_right_that_is_taken_delays_jobs_but_ends_none(rights: str, harness: Harness, operator: redis.Redis) -> None:
    """Also in the middle of a script, where the reply has the code ERR and looks like that of a damaged value."""
    jobs = [harness.submit(steps=60, preview_every=1), harness.submit(steps=20), harness.submit(n=2, steps=8)]
    harness.until(lambda: harness.running(jobs[0]), "the first job to run")
    operator.execute_command("ACL", "SETUSER", "default", rights)
    time.sleep(SECONDS)
    operator.execute_command("ACL", "SETUSER", "default", "+@all")
    store = Store(operator)
    for job_id in jobs:
        harness.until(lambda job_id=job_id: store.job(job_id).terminal, "the job to end")  # type: ignore[misc, union-attr]
        record = harness.job(job_id)
        assert (record.status, record.attempt, record.losses) == ("succeeded", 1, 0), record.error
        events = harness.events(job_id)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert [event["type"] for event in events][-1] == "succeeded"
    assert harness.workers[0].exit_code() is None
