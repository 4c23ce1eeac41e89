"""Image-to-image and inpainting: the same pixels as diffusers' pipelines, on tiny pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from denoised.jobs.control import control_index
from denoised.jobs.record import JobRecord
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.serving.loading import load_for_serving
from denoised.model.serving.protocol import ServedModel
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import trajectories
from tests.model.serving.text_pictures import LEVELS, SCHEDULERS, difference
from tests.text_pipelines import NEGATIVE_PROMPT, PROMPT, SCHEDULER, SIZE, save_pipeline

# diffusers 0.42 hands tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 8
DIGEST = "sha256:" + "0" * 64
PICTURE = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
MASK = np.zeros((SIZE, SIZE, 1), dtype=np.uint8)
MASK[4:, 6:] = 255
OPTIONS: dict[str, dict[str, Any]] = {"ddim": {}, "euler": {}, "dpmpp_2m": {"karras": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines") / "tiny-sd"


@pytest.fixture(scope="module")
def theirs(folder: Path) -> StableDiffusionPipeline:
    pipeline: StableDiffusionPipeline = save_pipeline(folder)
    return pipeline


@pytest.fixture(scope="module")
def ours(theirs: StableDiffusionPipeline, folder: Path) -> ServedModel:
    return load_for_serving(folder).model


@contextmanager
def mean_of_the_encoder() -> Iterator[None]:
    """Let diffusers encode pictures as we do, to the mean: it draws a sample, which moves the noise of the seed."""
    with patch.object(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()):
        yield


def made_here(model: ServedModel, pictures: dict[str, Any], **fields: Any) -> Any:
    """(H, W, 3) the picture of a job, made by the engine. pictures: those of its ControlNets among them."""
    given = {"guidance_scale": 3.0, "prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "steps": STEPS, **fields}
    names = {name: DIGEST for name in pictures if control_index(name) is None}
    request = SamplingRequest(model=model.card.name, label=None, label_name=None, seed=5, **names, **given)
    engine = Engine({model.card.name: model}, 8)
    images = trajectories(JobRecord("a", "", request, 0.0), model, pictures=pictures)
    engine.batch.admit(images)
    while len(engine.batch):
        engine.step()
    return model.decode(images[0].registers[:1])[0]


def made_there(pipeline: Any, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "guidance_scale": 3.0}
    with mean_of_the_encoder():
        images = pipeline(
            image=Image.fromarray(PICTURE), generator=generator, num_inference_steps=STEPS, **text, **options
        ).images
    return np.asarray(images[0])


def of(kind: Any, pipeline: StableDiffusionPipeline, sampler: str, **more: Any) -> Any:
    """A pipeline of another class from the parts of this one. more: further parts."""
    scheduler, settings, _ = SCHEDULERS[sampler]
    parts = {**pipeline.components, **more, "scheduler": scheduler.from_config({**SCHEDULER, **settings})}
    made = kind(**{**parts, "safety_checker": None, "image_encoder": None}, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("sampler", OPTIONS)
@pytest.mark.parametrize("strength", [0.3, 0.6, 0.95])
def test_a_redrawn_picture_equals_that_of_diffusers(
    theirs: StableDiffusionPipeline, ours: ServedModel, sampler: str, strength: float
) -> None:
    expected = made_there(of(StableDiffusionImg2ImgPipeline, theirs, sampler), strength=strength)
    found = made_here(ours, {"image": PICTURE}, sampler=sampler, strength=strength, **OPTIONS[sampler])
    assert difference(found, expected) <= LEVELS


@pytest.mark.parametrize("sampler", OPTIONS)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_an_inpainted_picture_equals_that_of_diffusers(
    theirs: StableDiffusionPipeline, ours: ServedModel, sampler: str, strength: float
) -> None:
    pipeline = of(StableDiffusionInpaintPipeline, theirs, sampler)
    mask = Image.fromarray(MASK[..., 0])
    expected = made_there(pipeline, mask_image=mask, strength=strength, height=SIZE, width=SIZE)
    pictures = {"image": PICTURE, "mask": MASK}
    found = made_here(ours, pictures, sampler=sampler, strength=strength, **OPTIONS[sampler])
    assert difference(found, expected) <= LEVELS


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> tuple[StableDiffusionPipeline, ServedModel]:
    """A U-Net of 9 channels: latents, mask, and the latents of what is kept."""
    folder = tmp_path_factory.mktemp("pipelines") / "tiny-inpainting"
    pipeline = save_pipeline(folder, unet={"in_channels": 9})
    return pipeline, load_for_serving(folder).model


@pytest.fixture(scope="module")
def editing(tmp_path_factory: pytest.TempPathFactory) -> tuple[StableDiffusionPipeline, ServedModel]:
    """A U-Net of 8 channels: latents, and those of the picture."""
    folder = tmp_path_factory.mktemp("pipelines") / "tiny-editing"
    pipeline = save_pipeline(folder, unet={"in_channels": 8})
    return pipeline, load_for_serving(folder).model


@pytest.mark.parametrize("sampler", OPTIONS)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_network_of_9_channels_fills_a_picture_as_in_diffusers(
    inpainting: tuple[StableDiffusionPipeline, ServedModel], sampler: str, strength: float
) -> None:
    parts, model = inpainting
    assert (model.card.pictures, model.shape) == ("inpaint", (4, 8, 8))
    mask = Image.fromarray(MASK[..., 0])
    pipeline = of(StableDiffusionInpaintPipeline, parts, sampler)
    expected = made_there(pipeline, mask_image=mask, strength=strength, height=SIZE, width=SIZE)
    pictures = {"image": PICTURE, "mask": MASK}
    found = made_here(model, pictures, sampler=sampler, strength=strength, **OPTIONS[sampler])
    assert difference(found, expected) <= LEVELS


@pytest.mark.parametrize("sampler", OPTIONS)
@pytest.mark.parametrize("image_scale", [1.5, 3.0])
def test_a_network_of_8_channels_edits_a_picture_as_in_diffusers(
    editing: tuple[StableDiffusionPipeline, ServedModel], sampler: str, image_scale: float
) -> None:
    parts, model = editing
    assert (model.card.pictures, model.card.image_guidance) == ("edit", True)
    expected = made_there(of(StableDiffusionInstructPix2PixPipeline, parts, sampler), image_guidance_scale=image_scale)
    fields = {"image_guidance_scale": image_scale, **OPTIONS[sampler]}
    found = made_here(model, {"image": PICTURE}, sampler=sampler, **fields)
    assert difference(found, expected) <= LEVELS


def test_both_kinds_are_loaded_from_the_folders_that_diffusers_saves(
    inpainting: tuple[StableDiffusionPipeline, ServedModel],
    editing: tuple[StableDiffusionPipeline, ServedModel],
    tmp_path: Path,
) -> None:
    kinds = (
        ("inpaint", StableDiffusionInpaintPipeline, inpainting),
        ("edit", StableDiffusionInstructPix2PixPipeline, editing),
    )
    for name, kind, (parts, model) in kinds:
        of(kind, parts, "ddim").save_pretrained(tmp_path / name)
        card = load_for_serving(tmp_path / name).model.card
        assert (card.pictures, card.inputs) == (model.card.pictures, model.card.inputs)


@pytest.mark.parametrize("kind", ["inpaint", "edit"])
def test_jobs_with_pictures_have_the_same_bytes_in_a_batch(
    kind: str,
    inpainting: tuple[StableDiffusionPipeline, ServedModel],
    editing: tuple[StableDiffusionPipeline, ServedModel],
) -> None:
    _, model = inpainting if kind == "inpaint" else editing
    pictures = {"image": PICTURE, "mask": MASK} if kind == "inpaint" else {"image": PICTURE}
    names = dict.fromkeys(pictures, DIGEST)
    scale = {"image_guidance_scale": 1.5} if kind == "edit" else {}
    request = SamplingRequest(
        model=model.card.name, label=None, label_name=None, n=3, seed=5, sampler="euler", steps=4, guidance_scale=3.0,
        prompt=PROMPT, **names, **scale,
    )  # fmt: skip

    def run(images: Any) -> list[torch.Tensor]:
        engine = Engine({model.card.name: model}, 8)
        engine.batch.admit(images)
        while len(engine.batch):
            engine.step()
        return [image.registers[0] for image in images]

    def images() -> Any:
        return trajectories(JobRecord("a", "", request, 0.0), model, pictures=pictures)

    alone = [run([image])[0] for image in images()]
    together = run(images())
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_strength_0_is_the_picture_after_the_autoencoder(theirs: StableDiffusionPipeline, ours: ServedModel) -> None:
    found = made_here(ours, {"image": PICTURE}, sampler="ddim", strength=0.0)
    pixels = torch.from_numpy(PICTURE).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        expected = theirs.vae.decode(theirs.vae.encode(pixels).latent_dist.mode()).sample[0]
    bytes_of = ((expected / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    assert difference(found, bytes_of) <= LEVELS
