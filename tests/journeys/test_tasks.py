"""Noise, score and likelihood of a picture, against the running service."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from denoised import AsyncClient, Client, JobFinished, JobProgress

SIDE = 8


@pytest.fixture(scope="module")
def client(service: Any) -> Any:
    with Client(service.url) as client:
        yield client


@pytest.fixture(scope="module")
def picture(client: Client) -> bytes:
    job = client.wait(client.submit("3", model="digits", steps=6, sampler="euler", seed=5).id)
    return client.image(job.images[0])


def array(client: Client, job: Any, name: str) -> Any:
    return np.load(io.BytesIO(client.array(job.array(name))))


def pixels(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L")).astype(float)


def test_noise_waits_and_has_x_t_as_a_picture_and_as_numbers(service: Any, picture: bytes) -> None:
    body = {"model": "digits", "image": base64.b64encode(picture).decode(), "t": 300, "seed": 7, "n": 2}
    answer = httpx.post(f"{service.url}/noise", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert (job["status"], job["task"], len(job["images"]), job["timing"]["evaluations"]) == (
        "succeeded",
        "noise",
        2,
        0,
    )
    level = job["result"]["level"]
    assert level["t"] == 300
    assert level["ratio"] == pytest.approx(level["sigma"] / level["alpha"])
    assert level["alpha"] ** 2 + level["sigma"] ** 2 == pytest.approx(1)
    first, second = (np.load(io.BytesIO(httpx.get(service.url + each["url"]).content)) for each in job["arrays"])
    assert first.shape == (1, SIDE, SIDE)
    noise = (first - second) / level["sigma"] / math.sqrt(2)  # the picture cancels
    assert 0.7 < noise.std() < 1.3
    shown = pixels(httpx.get(service.url + job["images"][0]["url"]).content)
    np.testing.assert_allclose(shown, np.clip(first[0] * 127.5 + 127.5, 0, 255), atol=1)


def test_the_noisy_picture_itself_by_accept(service: Any, picture: bytes) -> None:
    body = {"model": "digits", "image": base64.b64encode(picture).decode(), "sigma": 0.4, "seed": 7}
    answer = httpx.post(f"{service.url}/noise", json=body, headers={"Accept": "image/png"}, timeout=60)
    assert (answer.status_code, answer.headers["content-type"], answer.headers["x-seed"]) == (200, "image/png", "7")
    assert answer.content.startswith(b"\x89PNG")
    again = httpx.post(f"{service.url}/verify", content=answer.content, headers={"Content-Type": "image/png"})
    assert again.status_code == 422
    assert "POST /noise" in again.json()["detail"]


def test_the_score_belongs_to_the_noisy_picture(client: Client, picture: bytes) -> None:
    job = client.score(picture, model="digits", t=300, seed=7, label="3")
    noisy = client.noise(picture, model="digits", t=300, seed=7)
    x_t, x0, epsilon, score = (array(client, job, name) for name in ("x_t", "x0", "epsilon", "score"))
    np.testing.assert_array_equal(x_t, array(client, noisy, "x_t"))
    assert job.result is not None
    level = job.result["level"]
    np.testing.assert_allclose(score, -epsilon / level["sigma"], rtol=1e-6)
    np.testing.assert_allclose(x_t, level["alpha"] * x0 + level["sigma"] * epsilon, atol=1e-4)
    assert job.result["score_norm"] == pytest.approx(float(np.linalg.norm(score)))
    assert (job.result["space"], job.timing.evaluations) == ("pixels", 1)
    # x̂_0 is nearer to the picture than x_t is.
    picture_itself = pixels(picture) / 127.5 - 1
    assert np.abs(x0[0] - picture_itself).mean() < np.abs(x_t[0] - picture_itself).mean() / 2
    assert pixels(client.image(job.array("score").picture)).shape == (SIDE, SIDE)
    np.testing.assert_allclose(pixels(client.image(job.images[0])), np.clip(x0[0] * 127.5 + 127.5, 0, 255), atol=1)


def test_a_likelihood_is_a_job_with_progress_and_prefers_the_right_class(client: Client, picture: bytes) -> None:
    right = client.likelihood(picture, model="digits", label="3", steps=20, probes=4, seed=1)
    wrong = client.likelihood(picture, model="digits", label="1", steps=20, probes=4, seed=1)
    assert right.result is not None
    assert wrong.result is not None
    assert right.result["bits_per_dimension"] < wrong.result["bits_per_dimension"]
    assert 0 < right.result["standard_error"] < 0.5
    assert (len(right.result["estimates"]), right.images, right.run_steps) == (4, (), 20)
    assert right.timing.evaluations == 4 * (4 * 20 + 2)
    steps = [event.step for event in client.events(right.id) if isinstance(event, JobProgress)]
    assert steps == sorted(steps)
    assert steps[-1] == 20
    (end,) = [event for event in client.events(right.id) if isinstance(event, JobFinished)]
    assert end.result.result == right.result


def test_results_are_the_same_next_to_other_jobs(client: Client, picture: bytes) -> None:
    fields: dict[str, Any] = {"model": "digits", "label": "3", "seed": 3}
    score = client.score(picture, t=500, **fields)
    likelihood = client.likelihood(picture, steps=10, probes=2, **fields)
    others = [client.submit("7", model="digits", n=3, steps=60, sampler="ddim", seed=k).id for k in range(4)]
    again = client.score(picture, t=500, **fields)
    likelihood_again = client.likelihood(picture, steps=10, probes=2, **fields)
    assert [each.sha256 for each in again.arrays] == [each.sha256 for each in score.arrays]
    assert [each.sha256 for each in again.images] == [each.sha256 for each in score.images]
    assert (again.result, likelihood_again.result) == (score.result, likelihood.result)
    for job_id in others:
        assert client.wait(job_id).status == "succeeded"


def test_a_canceled_likelihood_has_no_result(client: Client, picture: bytes, service: Any) -> None:
    body = {"model": "digits", "image": base64.b64encode(picture).decode(), "steps": 1000, "probes": 16}
    job = httpx.post(f"{service.url}/likelihood", json=body).json()
    assert client.cancel(job["id"]).status == "canceled"
    canceled = client.wait(job["id"])
    assert (canceled.status, canceled.result) == ("canceled", None)


def test_the_asynchronous_client_does_the_same(service: Any, client: Client, picture: bytes) -> None:
    async def ask() -> Any:
        async with AsyncClient(service.url) as api:
            jobs = await asyncio.gather(
                api.noise(picture, model="digits", t=300, seed=7),
                api.score(picture, model="digits", t=300, seed=7),
                api.likelihood(picture, model="digits", steps=5, probes=2, seed=7),
            )
            return jobs, await api.array(jobs[0].array("x_t"))

    (noise, score, likelihood), data = asyncio.run(ask())
    assert [job.task for job in (noise, score, likelihood)] == ["noise", "score", "likelihood"]
    assert data == client.array(score.array("x_t"))


def run(service: Any, *arguments: Any, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "denoised", *map(str, arguments), "--url", service.url]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == code, outcome.stderr
    return outcome


def test_the_terminal_writes_the_files_and_prints_the_numbers(service: Any, picture: bytes, tmp_path: Path) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    photo.write_bytes(picture)
    asked = ("--model", "digits", "--t", "300", "--seed", "7", "--out", out)
    noise = run(service, "noise", photo, *asked).stdout.splitlines()
    assert [Path(line).name for line in noise[:2]] == ["digits-7.png", "digits-xt-7.npy"]
    assert noise[2].startswith("t 300, α 0.8")
    score = run(service, "score", photo, *asked, "--label", "3", "--json")
    names = [Path(path).name for path in json.loads(score.stdout)["files"]]
    assert names == [
        "3-7.png",
        *("3-xt-7.npy", "3-xt-7.png", "3-x0-7.npy", "3-epsilon-7.npy", "3-epsilon-7.png"),
        *("3-score-7.npy", "3-score-7.png"),
    ]
    assert np.load(out / "3-score-7.npy").shape == (1, SIDE, SIDE)
    likelihood = run(service, "picture-likelihood", photo, "--model", "digits", "--steps", "5", "--probes", "2")
    assert likelihood.stdout.endswith("bits per dimension (64 dimensions of pixels, 2 estimates)\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("noise", "missing.png", "--t", "3"), "'missing.png' cannot be read (No such file or directory)"),
        (("noise", "photo.png"), "t: is missing (allowed: 0 … 999, or sigma, a noise level σ/α)"),
        (("score", "photo.png", "--t", "-1"), "-1.0 was given (allowed: 0 or more)"),
        (("picture-likelihood", "photo.png", "--probes", "1"), "1 was given (allowed: 2 or more)"),
    ],
)
def test_the_terminal_names_what_is_wrong_in_one_line(
    service: Any, picture: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, message: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(picture)
    error = run(service, *arguments, code=2).stderr
    assert message in error
    assert error.count("\n") == 1
