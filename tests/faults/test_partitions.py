"""Two hosts share a store, and one of them is cut off from it for longer than its leases: nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.proxy import Proxy
from tests.faults.site import Api, Site, status
from tests.faults.test_worker_killed import JOBS, TURN_SECONDS, check_events

LEASE = 2.0


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        ("silent", 6.0),
        pytest.param("silent", 30.0, marks=pytest.mark.faults),
        pytest.param("refusing", 30.0, marks=pytest.mark.faults),
        pytest.param("forgotten", 30.0, marks=pytest.mark.faults),
    ],
)
def test_a_host_that_is_cut_off_loses_and_doubles_no_job(
    kind: str, seconds: float, site: Site, tmp_path: Path, report: Callable[..., None]
) -> None:
    """Its worker holds jobs when the link fails: packets vanish, connections are refused, or a router forgets them."""
    with ExitStack() as stack:
        link = Proxy(site.valkey.port)
        stack.callback(link.close)
        away_url = f"redis://127.0.0.1:{link.port}/0"
        away_api = Api(away_url, tmp_path / "away.log")
        stack.callback(away_api.close)
        away_api.start()
        away = site.harness.worker("fake", seconds=TURN_SECONDS, lease=LEASE, url=away_url)
        site.ready()
        site.until(lambda: status(away_api.url, "/readyz") == 200, "the other host")
        jobs = [site.harness.submit(**fields) for fields in JOBS]
        site.until(lambda: all(site.harness.running(job) for job in jobs), "the jobs to run there")
        site.harness.worker("fake", seconds=TURN_SECONDS, lease=LEASE)

        _cut(link, kind)
        began = time.monotonic()
        with site.api.client() as near:
            posted = [near.post("/generate", json={"model": "fake", "steps": 20, "seed": seed}) for seed in range(5)]
        assert [answer.status_code for answer in posted] == [202] * 5
        jobs += [answer.json()["id"] for answer in posted]
        asked = time.monotonic()
        assert status(away_api.url, "/jobs") == 503
        assert time.monotonic() - asked < 4.0
        pictures = [site.harness.sha256(job) for job in jobs]
        near_seconds = time.monotonic() - began
        time.sleep(max(0.0, seconds - near_seconds))
        _heal(link, kind)

        site.until(lambda: status(away_api.url, "/readyz") == 200, "the other host after the cut")
        site.until(lambda: status(away_api.url, "/jobs") == 200, "its answers")
        time.sleep(2 * LEASE)  # for anything that the worker there still writes
        assert [site.harness.sha256(job) for job in jobs] == pictures
        again = [site.harness.submit(**fields) for fields in JOBS]
        assert [site.harness.sha256(job) for job in again] == pictures[: len(JOBS)]
        for job in [*jobs, *again]:
            check_events(site.harness.events(job))
            assert site.harness.job(job).status == "succeeded"
        assert away.exit_code() is None
        assert len(site.harness.store.workers.live()) == 2
        report(kind=kind, cut=f"{seconds:g} s", done_without_it=f"{near_seconds:.1f} s", lost=0)


def _cut(link: Proxy, kind: str) -> None:
    match kind:
        case "silent":
            link.silent = True
        case "refusing":
            link.refusing = True
            link.cut()
        case "forgotten":
            link.refusing = True
            link.forget()


def _heal(link: Proxy, kind: str) -> None:
    link.refusing = link.silent = False
    if kind == "forgotten":
        link.cut()
