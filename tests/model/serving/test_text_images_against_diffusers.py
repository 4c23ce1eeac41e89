"""Same seed, same picture: a Stable Diffusion pipeline that diffusers saved, sampled there and here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
)
from torch import Tensor

from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.networks.text_encoder.text_encoder import TextEncoder
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.loading import load_text_model
from denoised.model.serving.sampling import sample
from tests.model.serving.text_pictures import LEVELS, SCHEDULERS, STEPS, difference, picture, picture_of_scheduler
from tests.text_pipelines import NEGATIVE_PROMPT, PROMPT, SCHEDULER, picture_of, save_pipeline

# diffusers 0.42 hands tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ALL_SCHEDULERS: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    **SCHEDULERS,
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
    pipeline: StableDiffusionPipeline = save_pipeline(folder)
    return pipeline


@pytest.fixture(scope="module")
def ours(theirs: StableDiffusionPipeline, folder: Path) -> LatentModel:
    return load_text_model(folder)


@pytest.mark.parametrize("sampler", ALL_SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_a_picture_is_that_of_diffusers(
    sampler: str, guidance_scale: float, theirs: StableDiffusionPipeline, ours: LatentModel
) -> None:
    kind, settings, options = ALL_SCHEDULERS[sampler]
    expected = picture_of_scheduler(theirs, kind, settings, guidance_scale)
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


@pytest.mark.parametrize(("variant", "shard"), [("fp16", "10GB"), ("bf16", "10GB"), (None, "40KB"), ("fp16", "20KB")])
def test_weights_in_half_precision_and_in_shards_are_read(variant: str | None, shard: str, tmp_path: Path) -> None:
    saved = save_pipeline(tmp_path / "saved", variant=variant, shard=shard)
    names = [path.name for path in (tmp_path / "saved/unet").iterdir()]
    assert any(name.endswith(".json") and "index" in name for name in names) is (shard != "10GB")
    assert all(variant is None or variant in name or name == "config.json" for name in names)
    saved.to(torch.float32).scheduler = DDIMScheduler.from_config(saved.scheduler.config)
    expected = picture_of(saved, 5, prompt=PROMPT, guidance_scale=1.0, num_inference_steps=STEPS)
    found = picture(load_text_model(tmp_path / "saved"), sampler="ddim", steps=STEPS)
    assert difference(found, expected) <= LEVELS


@pytest.fixture(scope="module")
def v_predicting(tmp_path_factory: pytest.TempPathFactory) -> tuple[StableDiffusionPipeline, LatentModel]:
    folder = tmp_path_factory.mktemp("pipelines") / "v"
    pipeline = save_pipeline(folder, scheduler={"prediction_type": "v_prediction"})
    return pipeline, load_text_model(folder)


# PNDMScheduler averages v where PLMS averages the noise (docs/mathematics.md), so it is left out.
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_v_prediction_is_that_of_diffusers(
    sampler: str, guidance_scale: float, v_predicting: tuple[StableDiffusionPipeline, LatentModel]
) -> None:
    pipeline, model = v_predicting
    assert model.card.prediction_type == "v_prediction"
    kind, settings, options = SCHEDULERS[sampler]
    pipeline.scheduler = kind.from_config({**SCHEDULER, **settings, "prediction_type": "v_prediction"})
    text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "guidance_scale": guidance_scale}
    expected = picture_of(pipeline, 5, num_inference_steps=STEPS, **text)
    found = picture(model, sampler=sampler, steps=STEPS, guidance_scale=guidance_scale, **options)
    assert difference(found, expected) <= LEVELS


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_clip_skip_is_that_of_diffusers(
    clip_skip: int, theirs: StableDiffusionPipeline, ours: LatentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # diffusers 0.42 looks for the norm where transformers 4 had it.
    norm = SimpleNamespace(final_layer_norm=theirs.text_encoder.final_layer_norm)
    monkeypatch.setattr(theirs.text_encoder, "text_model", norm, raising=False)
    theirs.scheduler = DDIMScheduler.from_config(SCHEDULER)
    text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "guidance_scale": 7.5, "clip_skip": clip_skip}
    expected = picture_of(theirs, 5, num_inference_steps=STEPS, **text)
    options: dict[str, Any] = {"sampler": "ddim", "steps": STEPS, "guidance_scale": 7.5}
    found = picture(ours, clip_skip=clip_skip, **options)
    assert difference(found, expected) <= LEVELS
    assert (difference(found, picture(ours, **options)) > 0) is bool(clip_skip)


def test_emphasis_weighs_the_states_of_words(ours: LatentModel) -> None:
    def states(prompt: str, *, emphasis: bool = True) -> Tensor:
        return ours.encode([ConditioningRequest(prompt=prompt, emphasis=emphasis)])["context"][0]

    plain, weighted = states("a red house"), states("a (red:1.5) house")
    ratios = (weighted / plain).mean(dim=1)
    torch.testing.assert_close(ratios[2] / ratios[1], torch.tensor(1.5))  # after the start token and "a"
    torch.testing.assert_close(weighted.mean(), plain.mean())
    assert torch.equal(states("a red house", emphasis=False), plain)
    assert not torch.equal(states("a (red:1.5) house", emphasis=False), weighted)


def test_a_prompt_is_encoded_once(ours: LatentModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    evaluate = TextEncoder.forward

    def forward(self: TextEncoder, tokens: Tensor) -> Any:
        encoded.append(len(tokens))
        return evaluate(self, tokens)

    monkeypatch.setattr(TextEncoder, "forward", forward)
    request = ConditioningRequest(prompt="once, and only once", negative_prompt="never twice")
    for _ in range(3):
        ours.encode([request, request.unconditional()])
    ours.encode([ConditioningRequest(prompt="(once), and only once", emphasis=True)])
    assert sum(encoded) == 2  # emphasis weighs the states of the same tokens
    ours.encode([ConditioningRequest(prompt=request.prompt, clip_skip=1)])
    assert sum(encoded) == 3


def test_the_card_says_what_the_model_takes(ours: LatentModel) -> None:
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
    assert card.max_clip_skip == 2
    assert (card.name, card.width, card.height, card.channels) == ("tiny-sd", 16, 16, 3)
    assert (card.size_multiple, card.max_pixels) == (4, 1024)
    assert card.latent is not None
    assert (card.latent.channels, card.latent.downscale) == (4, 2)
    assert (card.default.sampler, card.default.steps, card.default.guidance_scale) == ("plms", 50, 7.5)
