"""`POST /score` with `x_t`: the score at a point of one's own, against the closed form of a Gaussian."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch

from denoised import Client
from denoised.model.checkpoints.reading import read_checkpoint
from denoised.model.serving.loading import ZOO
from tests import fork_server
from tests.text_pipelines import PROMPT, save_pipeline

SIDE = 8
Floats = npt.NDArray[np.float32]
POINT: Floats = (np.random.default_rng(3).normal(size=(1, SIDE, SIDE)) * 1.7).astype(np.float32)
LATENTS: Floats = np.random.default_rng(4).normal(size=(4, SIDE, SIDE)).astype(np.float32)


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def text(array: Any) -> str:
    return base64.b64encode(npy(array)).decode()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_pipeline(folder / "tiny-sd")
    return folder


@pytest.fixture(scope="module")
def points(models: Path, start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = ("--model", str(models / "tiny-sd"))
    return start_service(tmp_path_factory.mktemp("points") / "data", *options)


def arrays(url: str, job: dict[str, Any]) -> dict[str, Floats]:
    assert job["status"] == "succeeded", job["error"]
    return {each["name"]: np.load(io.BytesIO(httpx.get(url + each["url"]).content)) for each in job["arrays"]}


def score(service: Any, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{service.url}/score", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def test_a_score_is_that_of_the_network_at_the_point(points: Any) -> None:
    t = 420.0
    job = score(points, model="digits", x_t=text(POINT), t=t, label="3")
    found, level = arrays(points.url, job), job["result"]["level"]
    assert np.array_equal(found["x_t"], POINT), "bit for bit"
    checkpoint = read_checkpoint(ZOO / "digits")
    label = torch.tensor([checkpoint.classes.labels.index("3")])
    with torch.inference_mode():
        v = checkpoint.network.eval()(torch.from_numpy(POINT)[None], torch.tensor([t]), label)[0].numpy()
    assert checkpoint.noise.prediction_type == "v_prediction"
    epsilon = level["alpha"] * v + level["sigma"] * POINT  # Salimans and Ho 2022, appendix D
    np.testing.assert_allclose(found["score"], -epsilon / level["sigma"], atol=1e-3)
    np.testing.assert_allclose(level["alpha"] * found["x0"] + level["sigma"] * found["epsilon"], POINT, atol=1e-4)


def test_far_from_the_data_the_score_is_that_of_a_gaussian(points: Any) -> None:
    """At the noisiest level, p_t is nearly N(α·mean, σ²): ∇ log p_t(x) = −(x − α·x̂_0)/σ² with x̂_0 the data's mean,
    whatever x is. So the scores of two points differ by −(x − y)/σ²."""
    with httpx.Client(base_url=points.url) as client:
        (card,) = [each for each in client.get("/models").json() if each["name"] == "digits"]
    t = card["timesteps"] - 1
    first = score(points, model="digits", x_t=text(POINT), t=t)
    second = score(points, model="digits", x_t=text(-POINT), t=t)
    sigma = first["result"]["level"]["sigma"]
    difference = arrays(points.url, first)["score"] - arrays(points.url, second)["score"]
    np.testing.assert_allclose(difference, -2 * POINT / sigma**2, atol=0.15)


def test_every_way_to_send_a_point_gives_the_same_numbers(points: Any, tmp_path: Path) -> None:
    path = tmp_path / "point.npy"
    path.write_bytes(npy(POINT))
    expected = arrays(points.url, score(points, model="digits", x_t=text(POINT), sigma=2.0))["score"]
    form = {"model": "digits", "sigma": "2.0"}
    job = httpx.post(f"{points.url}/score", data=form, files={"x_t": npy(POINT)}, timeout=60).json()
    assert np.array_equal(arrays(points.url, job)["score"], expected)
    stored = score(points, model="digits", x_t=job["x_t"], sigma=2.0)
    assert np.array_equal(arrays(points.url, stored)["score"], expected), "as sha256:DIGEST while it is stored"
    with Client(points.url) as client:
        asked = client.score(x_t=path, model="digits", sigma=2.0)
        assert asked.x_t == job["x_t"]
        assert np.array_equal(np.load(io.BytesIO(client.array(asked.array("score")))), expected)
    command = [sys.executable, "-m", "denoised", "score", str(path), "--model", "digits", "--sigma", "2"]
    command += ["--out", str(tmp_path / "out"), "--url", points.url, "--json"]
    done = fork_server.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = [each for each in json.loads(done.stdout)["files"] if "score" in each and each.endswith(".npy")]
    assert np.array_equal(np.load(file), expected)


def test_a_model_of_latents_takes_latents_of_the_size_that_is_asked_for(points: Any) -> None:
    job = score(points, model="tiny-sd", prompt=PROMPT, x_t=text(LATENTS), t=300)
    assert job["result"]["space"] == "latents"
    assert np.array_equal(arrays(points.url, job)["x_t"], LATENTS)
    wide = np.concatenate([LATENTS, LATENTS], axis=2)
    wider = score(points, model="tiny-sd", prompt=PROMPT, x_t=text(wide), t=300, width=32)
    assert arrays(points.url, wider)["score"].shape == (4, 8, 16)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"x_t": text(POINT[0])}, "x_t", "the array has the shape (8, 8) (allowed here: (1, 8, 8))"),
        ({"x_t": text(POINT.astype(np.float64))}, "x_t", "of type '<f8' (allowed: '<f4', float32)"),
        ({"x_t": text(POINT * np.float32(np.inf))}, "x_t", "NaN or infinite numbers"),
        ({"x_t": "not base64"}, "x_t", "it is not base64"),
        ({"x_t": text(POINT), "seed": 7}, "seed", "7 was given with x_t (allowed: one of them)"),
        ({"x_t": text(POINT), "image": "AAAA"}, "image", "was given with x_t (allowed: one of them)"),
        ({"x_t": "sha256:" + "0" * 64}, "x_t", "is not stored here any more"),
        ({"x_t": None}, "image", "is missing"),
        ({"x_t": text(POINT), "model": "tiny-sd"}, "x_t", "(allowed here: (4, 8, 8))"),
    ],
)
def test_what_is_no_point_of_the_model_is_refused_by_name(
    change: dict[str, Any], field: str, message: str, points: Any
) -> None:
    body = {"model": "digits", "t": 300, **change}
    answer = httpx.post(f"{points.url}/score", json=body, timeout=60)
    assert answer.status_code == 422, answer.text
    assert (field, True) in [(each["field"], message in each["message"]) for each in answer.json()["errors"]]


def test_noise_and_pictures_take_no_point(points: Any) -> None:
    for path in ("noise", "generate", "likelihood"):
        answer = httpx.post(f"{points.url}/{path}", json={"model": "digits", "x_t": text(POINT)})
        assert answer.status_code == 422
        assert "x_t" in [each["field"] for each in answer.json()["errors"]]
