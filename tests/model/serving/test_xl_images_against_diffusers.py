"""Same seed, same picture: a Stable Diffusion XL pipeline that diffusers saved, sampled there and here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionXLPipeline,
)

from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.loading import load_text_model
from denoised.model.serving.sampling import sample
from tests.model.serving.text_pictures import LEVELS, SCHEDULERS, STEPS, difference, picture, picture_of_scheduler
from tests.text_pipelines import (
    NEGATIVE_PROMPT,
    PROMPT,
    SCHEDULER,
    build_pipeline,
    build_xl_pipeline,
    picture_of,
    save_pipeline,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines") / "tiny-xl"


@pytest.fixture(scope="module")
def theirs(folder: Path) -> StableDiffusionXLPipeline:
    pipeline: StableDiffusionXLPipeline = save_pipeline(folder, build=build_xl_pipeline)
    return pipeline


@pytest.fixture(scope="module")
def ours(theirs: StableDiffusionXLPipeline, folder: Path) -> LatentModel:
    return load_text_model(folder)


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_a_picture_is_that_of_diffusers(
    sampler: str, guidance_scale: float, theirs: StableDiffusionXLPipeline, ours: LatentModel
) -> None:
    kind, settings, options = SCHEDULERS[sampler]
    expected = picture_of_scheduler(theirs, kind, settings, guidance_scale)
    found = picture(ours, sampler=sampler, steps=STEPS, guidance_scale=guidance_scale, **options)
    assert expected.std() > 10
    assert difference(found, expected) <= LEVELS


@pytest.mark.parametrize("zeros", [True, False])
def test_without_a_negative_prompt_guidance_leads_away_from_zeros_if_the_folder_says_so(
    zeros: bool, theirs: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    theirs.scheduler = DDIMScheduler.from_config(SCHEDULER)
    theirs.register_to_config(force_zeros_for_empty_prompt=zeros)
    try:
        theirs.save_pretrained(tmp_path / "copy")
        expected = picture_of(theirs, 5, prompt=PROMPT, guidance_scale=7.5, num_inference_steps=STEPS)
    finally:
        theirs.register_to_config(force_zeros_for_empty_prompt=True)
    model = load_text_model(tmp_path / "copy")
    found = picture(model, negative_prompt=None, sampler="ddim", steps=STEPS, guidance_scale=7.5)
    assert difference(found, expected) <= LEVELS
    request = ConditioningRequest(prompt=PROMPT)
    conditioning = model.encode([request, request.unconditional()])
    assert bool((conditioning["context"][1] == 0).all()) is zeros
    assert bool((conditioning["pooled"][1] == 0).all()) is zeros


@pytest.mark.parametrize("build", [build_pipeline, build_xl_pipeline])
@pytest.mark.parametrize(
    "vae",
    [
        {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 0.7, 1.3]},
        {"shift_factor": 0.4, "scaling_factor": 0.5},
    ],
    ids=["mean and deviation", "shift"],
)
def test_latents_are_scaled_as_the_pipeline_of_the_folder_does_it(
    vae: dict[str, Any], build: Any, tmp_path: Path
) -> None:
    """Only that of XL reads mean and deviation, and none reads the shift."""
    theirs = save_pipeline(tmp_path / "model", build=build, vae=vae)
    theirs.scheduler = DDIMScheduler.from_config(SCHEDULER)
    text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "guidance_scale": 5.0}
    expected = picture_of(theirs, 5, num_inference_steps=STEPS, **text)
    found = picture(load_text_model(tmp_path / "model"), sampler="ddim", steps=STEPS, guidance_scale=5.0)
    assert difference(found, expected) <= LEVELS


def test_another_size_changes_the_size_ids_as_in_diffusers(
    theirs: StableDiffusionXLPipeline, ours: LatentModel
) -> None:
    theirs.scheduler = DDIMScheduler.from_config(SCHEDULER)
    size = {"width": 24, "height": 16}
    expected = picture_of(theirs, 7, prompt=PROMPT, guidance_scale=1.0, num_inference_steps=STEPS, **size)
    found = picture(ours, seed=7, size=(24, 16), sampler="ddim", steps=STEPS)
    assert difference(found, expected) <= LEVELS
    conditioning = ours.encode([ConditioningRequest(width=24, height=32), ConditioningRequest()])
    assert conditioning["size_ids"].tolist() == [[32, 24, 0, 0, 32, 24], [16, 16, 0, 0, 16, 16]]


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_clip_skip_counts_from_the_penultimate_layer(
    clip_skip: int, theirs: StableDiffusionXLPipeline, ours: LatentModel
) -> None:
    theirs.scheduler = DDIMScheduler.from_config(SCHEDULER)
    text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "guidance_scale": 7.5, "clip_skip": clip_skip}
    expected = picture_of(theirs, 5, num_inference_steps=STEPS, **text)
    found = picture(ours, clip_skip=clip_skip, sampler="ddim", steps=STEPS, guidance_scale=7.5)
    assert difference(found, expected) <= LEVELS
    plain = picture(ours, sampler="ddim", steps=STEPS, guidance_scale=7.5)
    assert (difference(found, plain) > 0) is bool(clip_skip)


def test_an_image_has_the_same_bytes_alone_and_among_others(ours: LatentModel) -> None:
    prompts = [PROMPT, "a fox", "the dog's blue scarf, 8k", ""]
    requests = [ConditioningRequest(prompt=prompt, negative_prompt=NEGATIVE_PROMPT) for prompt in prompts]
    options: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 5, "guidance_scale": 4.0}
    together = sample(ours, requests, seed=40, **options)
    for k, request in enumerate(requests):
        assert torch.equal(sample(ours, [request], seed=40 + k, **options)[0], together[k])


def test_the_pooled_vector_of_a_long_prompt_is_that_of_its_first_sequence(ours: LatentModel) -> None:
    long = ConditioningRequest(prompt=", ".join([PROMPT] * 20))
    first = ours.encode([ConditioningRequest(prompt=long.prompt)])
    cut = ours.encode([ConditioningRequest(prompt="a fox"), long])
    assert first["context"].shape[1] > 77
    assert first["context"].shape[1] % 77 == 0
    assert torch.equal(cut["context"][1], first["context"][0])
    assert torch.equal(cut["pooled"][1], first["pooled"][0])


def test_the_card_has_the_defaults_of_the_pipeline(ours: LatentModel) -> None:
    card = ours.card
    assert card.inputs == [
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "clip_skip",
        "emphasis",
        "image",
        "strength",
        "mask",
    ]
    assert (card.max_clip_skip, card.guidance_embedded) == (1, False)
    assert (card.default.sampler, card.default.steps, card.default.guidance_scale) == ("euler", 50, 5.0)


def test_previews_use_the_published_colors_of_the_family(ours: LatentModel) -> None:
    latents = torch.zeros(1, *ours.shape)
    assert ours.preview(latents)[0, 0, 0].tolist() == [150, 140, 130]
    latents[:, 0] = 1.0
    assert ours.preview(latents)[0, 0, 0].tolist() == [210, 200, 190]
