"""Noise, scores and likelihoods by a model of latents with prompts: everything is of the latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from denoised.jobs.record import JobRecord
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.loading import load_for_serving
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.pictures.task_outputs import arrays_of, likelihood_result, result_at_level
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import Trajectory, trajectories
from tests.text_pipelines import PROMPT, save_pipeline

DIGEST = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = tmp_path_factory.mktemp("pipelines") / "tiny-sd"
    save_pipeline(folder)
    return load_for_serving(folder).model


@pytest.fixture(scope="module")
def picture(model: ServedModel) -> Any:
    return np.random.default_rng(1).integers(0, 256, (model.card.height, model.card.width, 3), dtype=np.uint8)


def request(**fields: Any) -> SamplingRequest:
    given = {"sampler": "ddim", "steps": 3, "guidance_scale": 1.0, "seed": 3, "prompt": PROMPT, "image": DIGEST}
    return SamplingRequest(model="tiny-sd", label=None, label_name=None, **{**given, **fields})


def images(model: ServedModel, picture: Any, **fields: Any) -> list[Trajectory]:
    record = JobRecord(id=str(sorted(fields)), owner="", request=request(**fields), created_at=0.0)
    return trajectories(record, model, pictures={"image": picture})


def run(model: ServedModel, members: Sequence[Trajectory]) -> list[Tensor]:
    """The last registers of each image."""
    engine = Engine({"tiny-sd": model}, 8)
    engine.admit([member for member in members if not member.finished])
    while len(engine.batch):
        assert not engine.step().failed
    return [member.registers for member in members]


def test_the_score_is_of_the_latents_and_that_of_the_network(model: ServedModel, picture: Any) -> None:
    fields: dict[str, Any] = {"task": "score", "t": 400.0}
    (registers,) = run(model, images(model, picture, **fields))
    found = arrays_of(request(**fields), model, registers)
    x0 = model.encode_pictures(picture[None])
    level = result_at_level(request(**fields), model, found)["level"]
    noise = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(3))
    x_t = level["alpha"] * x0 + level["sigma"] * noise
    np.testing.assert_allclose(found["x_t"], x_t[0].numpy(), rtol=1e-6)
    columns = (torch.tensor([level[name]], dtype=torch.float32) for name in ("t", "alpha", "sigma"))
    estimate = model.denoise(x_t, *columns, model.encode([ConditioningRequest(prompt=PROMPT)]))
    np.testing.assert_array_equal(found["epsilon"], estimate.epsilon[0].numpy())
    np.testing.assert_allclose(found["score"], -estimate.epsilon[0].numpy() / level["sigma"], rtol=1e-6)
    result = result_at_level(request(**fields), model, found)
    assert (result["space"], found["score"].shape) == ("latents", model.shape)
    # The image of the job is x̂_0, as the autoencoder decodes it.
    assert model.decode(registers[:1]).shape == (1, model.card.height, model.card.width, 3)


def test_noise_takes_no_prompt_and_decodes_to_a_picture(model: ServedModel, picture: Any) -> None:
    (registers,) = run(model, images(model, picture, task="noise", sigma=0.7, prompt=None))
    assert arrays_of(request(task="noise", sigma=0.7), model, registers)["x_t"].shape == model.shape
    assert model.decode(registers[:1]).dtype == np.uint8


def test_a_likelihood_of_latents_says_so_and_shares_batches(model: ServedModel, picture: Any) -> None:
    fields: dict[str, Any] = {"task": "likelihood", "steps": 3, "n": 2}
    alone = run(model, images(model, picture, **fields))
    others = images(model, picture, image=None, n=2, guidance_scale=3.0, steps=9)
    together = run(model, [*others, *images(model, picture, **fields)])[2:]
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    result = likelihood_result(request(**fields), model, alone)
    assert (result["space"], result["dimensions"]) == ("latents", int(np.prod(model.shape)))
    assert np.isfinite(result["bits_per_dimension"])
    assert result["standard_error"] > 0
