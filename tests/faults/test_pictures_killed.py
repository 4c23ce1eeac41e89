"""Workers killed in jobs that start from a picture: another worker continues, with the same bytes and numbers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from denoised.jobs.record import JobRecord
from tests.faults.site import Site
from tests.faults.test_worker_killed import check_events
from tests.harness import Harness

SIDE = 4
TURN_SECONDS = 0.01


def png(pixels: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(out, "png")
    return out.getvalue()


PICTURE = png(np.random.default_rng(5).integers(0, 256, (SIDE, SIDE)))
MASK = png([[0, 0, 255, 255]] * SIDE)
JOBS: dict[str, dict[str, Any]] = {
    "img2img": {"steps": 200, "strength": 0.6, "sampler": "euler_a", "seed": 1, "n": 2, "pictures": {"image": PICTURE}},
    "inpainting": {"steps": 150, "sampler": "dpmpp_2m", "seed": 2, "pictures": {"image": PICTURE, "mask": MASK}},
    "likelihood": {"task": "likelihood", "steps": 30, "n": 2, "seed": 3, "pictures": {"image": PICTURE}},
}


def outcome(harness: Harness, job_id: str) -> Any:
    """What a job has come to."""
    record = harness.finished(job_id)
    assert record.status == "succeeded", record.error
    return record.result, [image.sha256 for image in record.images]


@pytest.mark.parametrize("decode_seconds", [None, pytest.param(0.05, marks=pytest.mark.faults)])
def test_a_job_from_a_picture_continues_in_another_worker(decode_seconds: float | None, site: Site) -> None:
    """Of pixels, and of latents, which have a decoder."""
    harness = site.harness
    traits: dict[str, Any] = {"seconds": TURN_SECONDS, "lease": 2.0, "decode_seconds": decode_seconds}
    victim = harness.worker("fake", **traits)
    expected = {name: outcome(harness, harness.submit(**fields)) for name, fields in JOBS.items()}
    assert expected["likelihood"][0]["standard_error"] is not None
    jobs = {name: harness.submit(**fields) for name, fields in JOBS.items()}
    for job_id in jobs.values():
        harness.until(lambda job_id=job_id: _is_saved(harness, job_id), "its first resume point")  # type: ignore[misc]
    victim.kill()
    lost = [job_id for job_id in jobs.values() if not harness.job(job_id).terminal]
    assert len(lost) == len(jobs)
    harness.worker("fake", **traits)
    assert {name: outcome(harness, job_id) for name, job_id in jobs.items()} == expected
    for job_id in jobs.values():
        check_events(harness.events(job_id))
        record = harness.job(job_id)
        assert record.attempt == 2
        _check_expiry(harness, record)


@pytest.mark.faults
def test_a_job_whose_picture_is_gone_fails_by_name(site: Site) -> None:
    harness = site.harness
    job_id = harness.submit(pictures={"image": PICTURE}, steps=5)
    (key,) = harness.job(job_id).inputs.values()
    harness.client.delete(key)
    harness.worker("fake")
    error = harness.finished(job_id).error
    assert error is not None
    assert error["message"] == "image of the request is not stored here any more"


def _is_saved(harness: Harness, job_id: str) -> bool:
    """Whether another worker would not begin anew."""
    record = harness.job(job_id)
    return record.status == "running" and harness.store.attempts.resume_point(job_id) is not None


def _check_expiry(harness: Harness, record: JobRecord) -> None:
    """The pictures of a job that is over expire with it."""
    kept = harness.client.ttl(f"denoised:job:{record.id}")
    for key in record.inputs.values():
        assert 0 < harness.client.ttl(key) <= kept + 60
