"""The bundled emoji: what the card says about the model, and that it draws what captions ask for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import StableDiffusionPipeline

from denoised.model.checkpoints.card_file import read_card_file
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.loading import ZOO, load_text_model
from denoised.model.serving.sampling import sample
from denoised.model.training.emoji.captions import write_caption
from denoised.model.training.emoji.emoji_pictures import COLORS
from denoised.model.training.emoji.styles import STYLE_NAMES, credit_lines

FOLDER = ZOO / "emoji"
MEBIBYTE = 1 << 20

pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason="the model is not bundled: make emoji"),
    # diffusers 0.42 hands tensors to numpy in a way that numpy 2 warns of.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def model() -> LatentModel:
    return load_text_model(FOLDER)


def draw(model: LatentModel, prompts: list[str], seed: int, **settings: object) -> npt.NDArray[np.uint8]:
    """Pictures (B, H, W, 3) of prompts, with the card's defaults unless given."""
    default = model.card.default
    given = {"sampler": default.sampler, "steps": default.steps, "guidance_scale": default.guidance_scale, **settings}
    requests = [ConditioningRequest(prompt=prompt) for prompt in prompts]
    return model.decode(sample(model, requests, seed=seed, **given))  # type: ignore[arg-type]


def test_it_is_small_and_its_card_gives_origin_licenses_and_what_was_measured() -> None:
    card = read_card_file(FOLDER)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 40 * MEBIBYTE
    assert card.credits == credit_lines()
    assert card.license.startswith("Weights: Apache-2.0")
    assert all(name in card.license for name in ("CC-BY-4.0 (twemoji)", "MIT (fluent, flat)"))
    assert card.default.steps <= 25
    assert card.prompt_guide.parts == {"style": list(STYLE_NAMES), "background": list(COLORS)}
    assert card.evaluation["captions"] >= 2_000
    assert (card.evaluation["sampler"], card.evaluation["steps"]) == (card.default.sampler, card.default.steps)
    assert {"drawn", "shuffled", "real", "ranks", "frechet"} <= card.evaluation.keys()


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_diffusers_draws_the_same_picture(model: LatentModel, guidance_scale: float) -> None:
    prompt = model.card.prompt_guide.examples[0]
    theirs = StableDiffusionPipeline.from_pretrained(FOLDER, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    made = theirs(prompt, num_inference_steps=8, guidance_scale=guidance_scale, generator=generator, output_type="np")
    expected = (made.images[0] * 255).round().astype(int)
    (found,) = draw(model, [prompt], 7, sampler="ddim", steps=8, guidance_scale=guidance_scale)
    assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.slow
def test_the_background_has_the_color_of_the_prompt(model: LatentModel) -> None:
    """The nearest of the twelve colors, in the corners of a picture of each."""
    prompts = [write_caption("goat", "noto", color) for color in COLORS]
    pictures = draw(model, prompts, 100).astype(float)
    corners = pictures[:, [0, -1]][:, :, [0, -1]].mean(axis=(1, 2))  # (B, 3)
    distances = np.linalg.norm(corners[:, None] - np.array(list(COLORS.values())), axis=-1)
    right = distances.argmin(axis=1) == np.arange(len(COLORS))
    assert right.mean() >= 0.9
