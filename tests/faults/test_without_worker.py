"""Workers that start on demand: jobs wait in Redis while there are none."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.faults.site import Site


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_jobs_that_were_accepted_without_a_worker_are_done_by_the_next(
    end: signal.Signals, open_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENOISED_QUEUE_WITHOUT_WORKER", "true")
    site = open_site(apis=2)
    worker = site.harness.worker("fake", lease=2.0)
    site.ready()
    worker.signal(end)
    worker.wait()
    with site.apis[0].client() as client, site.apis[1].client() as other:
        site.until(lambda: [each["workers"] for each in client.get("/models").json()] == [0], "an empty fleet")
        jobs = [client.post("/generate", json={"label": "apple", "steps": 8}).json()["id"] for _ in range(3)]
        waiting = other.get(f"/jobs/{jobs[2]}").json()
        assert (waiting["status"], waiting["queue_position"], waiting["eta_seconds"]) == ("queued", 2, None)
        assert other.get("/readyz").status_code == 200
    site.harness.worker("fake", lease=2.0)
    assert [site.harness.finished(job).status for job in jobs] == ["succeeded"] * 3
