"""The bundled digits: what the card says about the model, measured again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.svm import SVC

from denoised.model.checkpoints.card_file import read_card_file
from denoised.model.diffusion.noise import level_tables
from denoised.model.diffusion.predictions import add_noise
from denoised.model.serving.conditioning import Conditioning
from denoised.model.serving.loading import ZOO, load_model
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.sampling import sample
from denoised.model.training.datasets.dataset import Dataset, to_unit
from denoised.model.training.datasets.sources import DIGITS, load_dataset

FOLDER = ZOO / "digits"
COUNT = 200


@pytest.fixture(scope="module")
def model() -> PixelModel:
    return load_model(FOLDER)


@pytest.fixture(scope="module")
def train() -> Dataset:
    return load_dataset(DIGITS)


@pytest.fixture(scope="module")
def held_out() -> Dataset:
    return load_dataset(DIGITS, split="test")


@pytest.fixture(scope="module")
def samples(model: PixelModel) -> npt.NDArray[np.uint8]:
    """(200, 8, 8): twenty of each digit in turn, with the card's defaults."""
    default = model.card.default
    labels = [k % 10 for k in range(COUNT)]
    x0 = sample(
        model, labels, sampler=default.sampler, steps=default.steps, guidance_scale=default.guidance_scale, seed=10_000
    )
    return model.decode(x0)[..., 0]


def flat(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    return images.reshape(len(images), -1) / 255


def test_a_separate_classifier_recognizes_the_requested_digits(
    samples: npt.NDArray[np.uint8], train: Dataset, held_out: Dataset
) -> None:
    """The classifier saw neither the samples nor the held-out images. It recognizes 98 % of the latter."""
    classifier = SVC(C=10).fit(flat(train.images.numpy()), train.classes.numpy())
    assert classifier.score(flat(held_out.images.numpy()), held_out.classes.numpy()) > 0.975
    named = classifier.predict(flat(samples)) == np.arange(COUNT) % 10
    assert named.mean() >= 0.97


def test_its_defaults_ask_for_twenty_evaluations_at_most(model: PixelModel) -> None:
    default = model.card.default
    rows = model.plan(default.sampler, default.steps, 0.0).evaluations
    assert rows * (2 if default.guidance_scale > 1 else 1) <= 20


def test_the_samples_are_no_copies_of_training_images(
    samples: npt.NDArray[np.uint8], train: Dataset, held_out: Dataset
) -> None:
    """They are about as far from the nearest training image as held-out images are."""

    def nearest(images: npt.NDArray[np.uint8]) -> float:
        distances = torch.cdist(torch.from_numpy(flat(images)), torch.from_numpy(flat(train.images.numpy())))
        return float(distances.min(dim=1).values.median())

    assert nearest(samples) > 0.75 * nearest(held_out.images.numpy())


def test_held_out_images_are_denoised_as_well_as_training_images(
    model: PixelModel, train: Dataset, held_out: Dataset
) -> None:
    """The error of x̂_0 at a middle level: far below that of the image itself, and nearly the same for both."""
    alpha, sigma = (table[500].expand(360) for table in level_tables(model.schedule))

    def error(data: Dataset) -> float:
        x0 = to_unit(data.images[:360])
        x = add_noise(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)), alpha, sigma)
        found = model.denoise(x, torch.full((360,), 500), alpha, sigma, Conditioning({"label": data.classes[:360]}))
        return float((found.x0 - x0).square().mean())

    assert error(held_out) < 0.25 * float(to_unit(held_out.images).var())
    assert error(held_out) < 1.2 * error(train)


def test_it_is_small_and_its_card_gives_its_origin() -> None:
    card = read_card_file(FOLDER)
    assert (FOLDER / "unet/diffusion_pytorch_model.safetensors").stat().st_size < 1_000_000
    assert card.labels == list("0123456789")
    assert "Alpaydin" in card.data
    assert "1,437" in card.data
    assert "CC BY 4.0" in card.license
    assert card.training["images_seen"] == card.training["steps"] * card.training["batch"]
