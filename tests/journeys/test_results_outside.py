"""Results in a folder and in a bucket with real programs: pictures, `verify`, workers killed at any moment, memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from denoised.jobs.results.settings import ResultSettings
from tests.faults.site import Site
from tests.faults.test_worker_killed import check_events
from tests.harness import Harness

PLACES = ("file", "s3")
MIB = 1 << 20
LARGEST = 64 * MIB  # of Redis' memory, with a job of 16 images of 512×512 whose frames are all watched
STEPS = 6

OpenSite = Callable[..., Site]


@pytest.fixture
def open_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenSite]:
    """`open_site(place, **settings)`: a site whose results lie there."""
    with ExitStack() as stack:

        def open_site(place: str, **settings: Any) -> Site:
            url = f"file://{tmp_path}/results" if place == "file" else request.getfixturevalue("s3_url")
            return Site(tmp_path, stack, results=ResultSettings(url, **settings))

        yield open_site


def memory(harness: Harness) -> tuple[int, int]:
    """Bytes that Redis uses, and the most that it has used."""
    info: Any = harness.client.info("memory")
    return info["used_memory"], info["used_memory_peak"]


@pytest.mark.parametrize("place", PLACES)
def test_a_picture_is_made_waited_for_and_verified(place: str, open_site: OpenSite) -> None:
    site = open_site(place)
    site.harness.worker("fake")
    site.ready()
    body = {"label": "bean", "seed": 3, "steps": 6, "preview_every": 2}
    with site.api.client() as client:
        picture = client.post("/generate", json=body, headers={"Accept": "image/png"})
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
        job_id = picture.headers["x-job-id"]
        assert client.get(f"/jobs/{job_id}/images/0").content == picture.content
        verified = client.post("/verify", content=picture.content, headers={"Content-Type": "image/png"})
        assert verified.json()["match"] is True
        stored = client.get(f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}).text
        assert client.get(f"/jobs/{job_id}/animation").status_code == 200
    events = [json.loads(line[6:]) for line in stored.splitlines() if line.startswith("data: ")]
    check_events(events)
    assert [event["step"] for event in events if event["type"] == "frame"] == [2, 4, 6]
    with connect(f"{site.api.url.replace('http', 'ws')}/jobs/{job_id}/events?after=3") as socket:
        assert [json.loads(message) for message in socket] == events[3:]


@pytest.mark.parametrize("place", ["file", pytest.param("s3", marks=pytest.mark.slow)])
def test_jobs_of_a_killed_worker_end_with_the_same_bytes(place: str, open_site: OpenSite) -> None:
    harness = open_site(place).harness
    jobs: list[dict[str, Any]] = [
        {"steps": 120, "sampler": "ddpm", "seed": 1, "n": 3, "preview_every": 30},
        {"steps": 100, "sampler": "dpmpp_2m", "seed": 2, "label": 1},
    ]
    victim = harness.worker("fake", seconds=0.01, lease=2.0)
    expected = [harness.sha256(harness.submit(**fields)) for fields in jobs]
    ids = [harness.submit(**fields) for fields in jobs]
    for job_id in ids:
        harness.until(lambda job_id=job_id: harness.store.attempts.resume_point(job_id), "its first resume point")  # type: ignore[misc]
    victim.kill()
    assert not any(harness.job(job_id).terminal for job_id in ids)
    heir = harness.worker("fake", seconds=0.01, lease=2.0)
    assert [harness.sha256(job_id) for job_id in ids] == expected
    assert [harness.job(job_id).attempt for job_id in ids] == [2, 2]
    evaluations = heir.evaluations()
    assert len(evaluations) < 120, "it continued where the other was"
    for job_id in ids:
        check_events(harness.events(job_id))
        assert harness.store.attempts.resume_point(job_id) is None
    kept = harness.store.results.ledger.bytes_by_kind()
    assert (kept["resume"], kept["image"] > 0) == (0, True)


@pytest.mark.slow
def test_a_job_of_sixteen_large_images_watched_at_every_frame_keeps_redis_small(
    open_site: OpenSite, record_property: Callable[[str, object], None]
) -> None:
    site = open_site("file")
    site.harness.worker("fake", shape=(3, 512, 512), lease=60.0)
    site.ready()
    before, _ = memory(site.harness)
    body = {"n": 16, "seed": 1, "steps": STEPS, "preview_every": 1, "preview": "xt"}
    seen, size = 0, 0

    def watch(job_id: str) -> None:
        nonlocal seen, size
        with connect(f"{site.api.url.replace('http', 'ws')}/jobs/{job_id}/events", max_size=None) as socket:
            for message in socket:
                seen += '"type": "frame"' in str(message)
                size += len(message)

    with site.api.client() as client:
        job_id = client.post("/generate", json=body).json()["id"]
        watcher = threading.Thread(target=watch, args=(job_id,))
        watcher.start()
        assert site.harness.finished(job_id).status == "succeeded"
        watcher.join(120)
        assert not watcher.is_alive()
    assert seen == 16 * STEPS
    used, peak = memory(site.harness)
    record_property("frames_mib", size / MIB)
    record_property("redis_peak_mib", peak / MIB)
    assert size > LARGEST, "in Redis, the frames alone would take more"
    assert peak < LARGEST
    assert used - before < 4 * MIB
