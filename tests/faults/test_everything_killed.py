"""API, worker and embedded Valkey are killed at one moment, and restarted from the files on disk."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.site import Serve
from tests.journeys.conftest import GARMENTS


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    serve = Serve(tmp_path / "serve", "--max-batch", "2")
    serve.start()
    serve.ready()
    yield serve
    serve.close()


def post_until_it_dies(serve: Serve, acknowledged: list[dict[str, Any]]) -> None:
    with (
        httpx.Client(base_url=serve.url, timeout=10, trust_env=False, verify=False) as client,
        contextlib.suppress(httpx.HTTPError),
    ):
        for seed in range(10_000):
            answer = client.post("/generate", json={**GARMENTS, "steps": 5, "seed": seed, "preview_every": 5})
            if answer.status_code == 202:
                acknowledged.append(answer.json())


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.faults)])
def test_every_acknowledged_job_is_done_after_a_restart_of_everything(
    rounds: int, serve: Serve, report: Callable[..., None]
) -> None:
    """Posts arrive until the very moment of the SIGKILL; the queue's order, results and events are as they were."""
    acknowledged: list[dict[str, Any]] = []
    until_ready = []
    for _ in range(rounds):
        with httpx.Client(base_url=serve.url, timeout=60, trust_env=False, verify=False) as client:
            done = client.post(
                "/generate",
                json={**GARMENTS, "steps": 4, "preview_every": 1},
                headers={"Prefer": "wait=60"},
            ).json()
            assert done["status"] == "succeeded"
            picture = client.get(done["images"][0]["url"])
            events = client.get(f"/jobs/{done['id']}/events", headers={"Accept": "text/event-stream"}).text
            long = client.post("/generate", json={**GARMENTS, "steps": 1000, "seed": 1}).json()
            acknowledged.append(long)
            posting = threading.Thread(target=post_until_it_dies, args=(serve, acknowledged))
            posting.start()
            while len(acknowledged) < 40 * (len(until_ready) + 1):
                assert posting.is_alive()
        assert serve.kill_all() >= 5
        posting.join()
        serve.start()
        until_ready.append(serve.ready())
        with httpx.Client(base_url=serve.url, timeout=60, trust_env=False, verify=False) as client:
            assert client.get(done["images"][0]["url"]).content == picture.content
            again = client.get(f"/jobs/{done['id']}/events", headers={"Accept": "text/event-stream"}).text
            assert again == events
            client.delete(f"/jobs/{long['id']}")
    with httpx.Client(base_url=serve.url, timeout=60, trust_env=False, verify=False) as client:
        ended = [_ended(client, job["id"]) for job in acknowledged]
        report(kills=rounds, acknowledged=len(ended), latest_ready_seconds=round(max(until_ready), 1))
        assert {job["status"] for job in ended if job["steps"] == 5} == {"succeeded"}
        begun = [job for job in ended if job["started_at"] is not None]  # the long ones may have been canceled before
        fresh = sorted((job for job in begun if job["attempt"] == 1), key=lambda job: job["created_at"])
        earlier = sum(after["started_at"] < before["started_at"] for before, after in itertools.pairwise(fresh))
        assert earlier <= rounds, "but for one that the killed worker was just taking off the queue"
        assert len(fresh) > 10


def _ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job once its event stream has ended."""
    with client.stream("GET", f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as stream:
        for _ in stream.iter_lines():
            pass
    job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
    return job
