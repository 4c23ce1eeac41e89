"""Models that need one row a step: guidance as an input of the network (LCM), and Turbo models without guidance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.loading import load_text_model
from denoised.model.serving.sampling import sample
from tests.model.serving.text_pictures import LEVELS, STEPS, difference, picture
from tests.text_pipelines import (
    PROMPT,
    SCHEDULER,
    build_lcm_pipeline,
    build_xl_pipeline,
    picture_of,
    save_pipeline,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines") / "tiny-lcm"


@pytest.fixture(scope="module")
def theirs(folder: Path) -> StableDiffusionPipeline:
    pipeline: StableDiffusionPipeline = save_pipeline(folder, unet={"time_cond_proj_dim": 32})
    return pipeline


@pytest.fixture(scope="module")
def ours(theirs: StableDiffusionPipeline, folder: Path) -> LatentModel:
    return load_text_model(folder)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_a_guidance_scale_is_an_input_as_in_diffusers(
    guidance_scale: float, theirs: StableDiffusionPipeline, ours: LatentModel
) -> None:
    theirs.scheduler = DDIMScheduler.from_config(SCHEDULER)
    options = {"prompt": PROMPT, "guidance_scale": guidance_scale, "num_inference_steps": STEPS}
    expected = picture_of(theirs, 5, **options)
    found = picture(ours, negative_prompt=None, sampler="ddim", steps=STEPS, guidance_scale=guidance_scale)
    assert difference(found, expected) <= LEVELS


def test_each_step_is_one_row_and_its_scale_that_of_its_image(
    ours: LatentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    denoise = ours.denoise

    def counted(x: Any, *rest: Any) -> Any:
        rows.append(len(x))
        return denoise(x, *rest)

    monkeypatch.setattr(ours, "denoise", counted)
    request = ConditioningRequest(prompt=PROMPT)
    one, other = (sample(ours, [request], steps=4, guidance_scale=scale) for scale in (1.0, 8.0))
    assert rows == [1] * 8
    assert not torch.equal(one, other)


def test_the_card_of_a_model_with_guidance_as_an_input(ours: LatentModel) -> None:
    assert ours.card.guidance_embedded
    assert "negative_prompt" not in ours.card.inputs
    assert ours.card.default.steps == 4


@pytest.mark.parametrize("guidance_scale", [1.0, 8.5])
def test_the_picture_of_a_latent_consistency_pipeline_is_that_of_diffusers(
    guidance_scale: float, tmp_path: Path
) -> None:
    pipeline = save_pipeline(tmp_path / "lcm", build=build_lcm_pipeline)
    model = load_text_model(tmp_path / "lcm")
    default = model.card.default
    assert (default.sampler, default.steps, default.guidance_scale) == ("lcm", 4, 8.5)
    expected = picture_of(pipeline, 5, prompt=PROMPT, guidance_scale=guidance_scale, num_inference_steps=4)
    found = picture(model, negative_prompt=None, sampler="lcm", steps=4, guidance_scale=guidance_scale)
    assert difference(found, expected) <= LEVELS


@pytest.mark.parametrize(
    ("kind", "build", "sampler"),
    [(EulerDiscreteScheduler, None, "euler"), (EulerAncestralDiscreteScheduler, build_xl_pipeline, "euler_a")],
    ids=["sd-turbo", "sdxl-turbo"],
)
@pytest.mark.parametrize("steps", [1, 4])
def test_a_turbo_model_s_picture_is_that_of_diffusers_without_guidance(
    kind: type, build: Any, sampler: str, steps: int, tmp_path: Path
) -> None:
    pipeline = save_pipeline(tmp_path / "turbo", **({"build": build} if build else {}))
    pipeline.scheduler = kind.from_config({**SCHEDULER, "timestep_spacing": "trailing"})
    pipeline.save_pretrained(tmp_path / "turbo")
    model = load_text_model(tmp_path / "turbo")
    default = model.card.default
    assert (default.sampler, default.steps, default.guidance_scale) == (sampler, 4, 1.0)
    expected = picture_of(pipeline, 5, prompt=PROMPT, guidance_scale=0.0, num_inference_steps=steps)
    found = picture(model, sampler=default.sampler, steps=steps, guidance_scale=default.guidance_scale)
    assert difference(found, expected) <= LEVELS


@pytest.mark.parametrize(
    "scheduler",
    [
        {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
        {
            "_class_name": "EulerDiscreteScheduler",
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
        },
        {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
    ],
)
def test_other_schedulers_keep_guidance_and_many_steps(scheduler: dict[str, Any], tmp_path: Path) -> None:
    save_pipeline(tmp_path / "many")
    path = tmp_path / "many/scheduler/scheduler_config.json"
    path.write_text(json.dumps({**SCHEDULER, **scheduler}))
    default = load_text_model(tmp_path / "many").card.default
    assert (default.steps, default.guidance_scale) == (50, 7.5)
