"""The bundled garments in one and two evaluations: what docs/quality.md says about them, on fewer images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from denoised.model.checkpoints.card_file import read_card_file
from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.evaluation.evaluator import digest
from denoised.model.evaluation.features import FASHION_FEATURES, FeatureSpace, load_features
from denoised.model.evaluation.image_generation import GenerationSettings, balanced_labels, generate_images
from denoised.model.serving.loading import ZOO, load_for_serving, load_model
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.sampling import count_evaluations

FOLDER, TEACHER = ZOO / "fashion-mnist-consistency", ZOO / "fashion-mnist"
COUNT = 200
MAX_BYTES = 16 * 2**20


@pytest.fixture(scope="module")
def model() -> PixelModel:
    served = load_for_serving(FOLDER).model
    assert isinstance(served, PixelModel)
    return served


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return load_features(FASHION_FEATURES, "cpu")


@pytest.mark.parametrize(("steps", "share"), [(1, 0.85), (2, 0.9)])
def test_a_classifier_names_the_requested_garments(
    model: PixelModel, space: FeatureSpace, steps: int, share: float
) -> None:
    """Of 2,000 images more than 93 % in either number of steps; here two standard deviations of 200 below."""
    labels = balanced_labels(COUNT, len(model.card.labels))
    settings = GenerationSettings(sampler="consistency", steps=steps, seed=31_000_000)
    images = generate_images(model, labels, settings)
    found = space.extract(images).classes
    assert float((found == torch.tensor(labels)).double().mean()) > share
    assert count_evaluations(model.plan("consistency", steps, 0.0)) == steps
    assert images.float().flatten(1).std(dim=0).mean() > 40, "the images differ from each other"


def test_its_card_names_the_teacher_and_its_levels(model: PixelModel) -> None:
    card, teacher = read_card_file(FOLDER), load_model(TEACHER).card
    assert card.training["model_digest"] == teacher.digest
    assert (card.labels, card.license) == (teacher.labels, teacher.license)
    own = load_model(TEACHER).plan("unipc_3", 6, 0.0, LevelChoice("geometric"))
    assert card.consistency_levels == [pytest.approx(own.ratio(row), rel=1e-5) for row in (0, 3)]
    assert (model.card.samplers, model.card.default.steps) == (["consistency"], 2)


def test_its_weights_are_small_and_are_those_of_the_quality_page(repository: Path) -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    weights = digest(FOLDER / "unet" / "diffusion_pytorch_model.safetensors")
    assert f"`{weights}`" in (repository / "docs/quality.md").read_text(encoding="utf-8")
