"""The bundled garments in one and two evaluations, served by a real worker."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx

MODEL = {"model": "fashion-mnist-consistency", "label": "sneaker", "seed": 7}


def test_pictures_are_made_in_one_and_two_evaluations_and_made_again(service: Any) -> None:
    with service.client() as client:
        found = {}
        for steps in (1, 2):
            job = client.post("/generate", json={**MODEL, "n": 2, "steps": steps}, headers={"Prefer": "wait=60"}).json()
            assert (job["status"], job["sampler"], job["timing"]["evaluations"]) == (
                "succeeded",
                "consistency",
                2 * steps,
            )
            found[steps] = client.get(job["images"][0]["url"]).content
            assert hashlib.sha256(found[steps]).hexdigest() == job["images"][0]["sha256"]
        assert found[1] != found[2]
        answer = client.post("/verify", content=found[2], headers={"Content-Type": "image/png", "Prefer": "wait=60"})
        assert answer.json()["match"] is True, answer.text


def test_what_makes_no_sense_for_it_is_refused_by_name(service: Any) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"steps": 3}, "steps"),
        ({"sampler": "ddim"}, "sampler"),
        ({"guidance_scale": 2}, "guidance_scale"),
        ({"model": "fashion-mnist", "sampler": "consistency"}, "sampler"),
    ]
    with service.client() as client:
        for change, field in cases:
            answer: httpx.Response = client.post("/generate", json={**MODEL, **change})
            assert (answer.status_code, [each["field"] for each in answer.json()["errors"]]) == (422, [field])
