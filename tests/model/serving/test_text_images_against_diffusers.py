"""Same seed, same picture: a Stable Diffusion pipeline that diffusers saved, sampled there and here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
)

from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.loading import load_text_model
from denoised.model.serving.sampling import sample
from tests.text_pipelines import NEGATIVE_PROMPT, PROMPT, SCHEDULER, picture_of, save_pipeline

# diffusers 0.42 hands tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 8
LEVELS = 2  # of 255, how far a pixel may be from diffusers'
SCHEDULERS: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}, {}),
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "leading"}, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, {"levels": LevelChoice(karras=True)}),
    "plms": (PNDMScheduler, {}, {}),
    "euler_a": (
        EulerAncestralDiscreteScheduler,
        {"timestep_spacing": "trailing"},
        {"levels": LevelChoice(spacing="trailing")},
    ),
    "lcm": (LCMScheduler, {}, {}),
    "tcd": (TCDScheduler, {}, {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines") / "tiny-sd"


@pytest.fixture(scope="module")
def theirs(folder: Path) -> StableDiffusionPipeline:
    return save_pipeline(folder)


@pytest.fixture(scope="module")
def ours(theirs: StableDiffusionPipeline, folder: Path) -> LatentModel:
    return load_text_model(folder)


def picture(model: LatentModel, seed: int = 5, size: tuple[int, int] | None = None, **options: Any) -> Any:
    """(H, W, 3) the picture that `sample` makes."""
    width, height = size or (None, None)
    request = ConditioningRequest(
        prompt=options.pop("prompt", PROMPT),
        negative_prompt=options.pop("negative_prompt", NEGATIVE_PROMPT),
        width=width,
        height=height,
    )
    return model.decode(sample(model, [request], seed=seed, **options))[0]


def difference(one: Any, other: Any) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_a_picture_is_that_of_diffusers(
    sampler: str, guidance_scale: float, theirs: StableDiffusionPipeline, ours: LatentModel
) -> None:
    kind, settings, options = SCHEDULERS[sampler]
    theirs.scheduler = kind.from_config({**SCHEDULER, **settings})
    expected = picture_of(
        theirs,
        5,
        prompt=PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        guidance_scale=guidance_scale,
        num_inference_steps=STEPS,
    )
    found = picture(ours, sampler=sampler, steps=STEPS, guidance_scale=guidance_scale, **options)
    assert expected.std() > 10
    assert difference(found, expected) <= LEVELS


def test_prompt_negative_prompt_and_size_each_change_the_picture(ours: LatentModel) -> None:
    options: dict[str, Any] = {"sampler": "ddim", "steps": 4, "guidance_scale": 3.0}
    plain = picture(ours, **options)
    assert difference(picture(ours, prompt="a cat", **options), plain) > LEVELS
    assert difference(picture(ours, negative_prompt=None, **options), plain) > LEVELS
    assert picture(ours, size=(24, 16), **options).shape == (16, 24, 3)


def test_another_size_is_that_of_diffusers(theirs: StableDiffusionPipeline, ours: LatentModel) -> None:
    theirs.scheduler = DDIMScheduler.from_config(SCHEDULER)
    expected = picture_of(theirs, 7, prompt=PROMPT, guidance_scale=1.0, num_inference_steps=STEPS, width=24, height=16)
    found = picture(ours, seed=7, size=(24, 16), sampler="ddim", steps=STEPS)
    assert difference(found, expected) <= LEVELS


def test_an_image_has_the_same_bytes_alone_and_among_others(ours: LatentModel) -> None:
    prompts = [PROMPT, "a fox", "the dog's blue scarf, 8k", ""]
    requests = [ConditioningRequest(prompt=prompt, negative_prompt=NEGATIVE_PROMPT) for prompt in prompts]
    options: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 5, "guidance_scale": 4.0}
    together = sample(ours, requests, seed=40, **options)
    for k, request in enumerate(requests):
        alone = sample(ours, [request], seed=40 + k, **options)
        assert torch.equal(alone[0], together[k])
        assert (ours.decode(alone)[0] == ours.decode(together)[k]).all()


def test_a_long_prompt_has_several_sequences_and_its_negative_prompt_as_many(ours: LatentModel) -> None:
    request = ConditioningRequest(prompt=", ".join([PROMPT] * 20), negative_prompt=NEGATIVE_PROMPT)
    conditioning = ours.encode([request, request.unconditional()])
    length = conditioning["context"].shape[1]
    assert length % 77 == 0
    assert length > 77
    assert torch.isfinite(sample(ours, [request], steps=2, guidance_scale=2.0)).all()


def test_previews_are_small_pictures(ours: LatentModel) -> None:
    latents = torch.zeros(2, *ours.shape)
    assert ours.preview(latents).shape == (2, 8, 8, 3)
    assert (ours.preview(latents) == 128).all()


def test_weights_in_half_precision_are_read(tmp_path: Path) -> None:
    half = save_pipeline(tmp_path / "half", variant="fp16")
    half.to(torch.float32).scheduler = DDIMScheduler.from_config(half.scheduler.config)
    expected = picture_of(half, 5, prompt=PROMPT, guidance_scale=1.0, num_inference_steps=STEPS)
    found = picture(load_text_model(tmp_path / "half"), sampler="ddim", steps=STEPS)
    assert difference(found, expected) <= LEVELS


def test_the_card_says_what_the_model_takes(ours: LatentModel) -> None:
    card = ours.card
    assert card.inputs == ["prompt", "negative_prompt", "width", "height"]
    assert (card.name, card.width, card.height, card.channels) == ("tiny-sd", 16, 16, 3)
    assert (card.size_multiple, card.max_pixels) == (4, 1024)
    assert card.latent is not None
    assert (card.latent.channels, card.latent.downscale) == (4, 2)
    assert (card.default.sampler, card.default.steps, card.default.guidance_scale) == ("plms", 50, 7.5)
