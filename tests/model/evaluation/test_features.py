"""The feature network: its training, its folder, and the bundled one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from denoised.model.errors import CheckpointError, TrainingError
from denoised.model.evaluation.data_splits import load_splits, shuffle
from denoised.model.evaluation.feature_training import FeatureTraining, augment, train_feature_network
from denoised.model.evaluation.features import (
    CARD,
    FASHION_FEATURES,
    WEIGHTS,
    FeatureSpace,
    load_features,
    save_features,
)
from denoised.model.training.datasets.dataset import Dataset
from denoised.model.training.datasets.sources import load_dataset
from tests.requirements import FASHION_MNIST, needs_fashion_mnist

CONFIG = FeatureTraining(epochs=20, batch=10, shift=0, learning_rate=1e-2)


@pytest.fixture
def space(dataset: Dataset) -> FeatureSpace:
    return train_feature_network(dataset, dataset, CONFIG)


@pytest.fixture
def written(space: FeatureSpace, tmp_path: Path) -> Path:
    save_features(tmp_path / "space", space)
    return tmp_path / "space"


def test_it_learns_to_distinguish_classes(space: FeatureSpace, dataset: Dataset) -> None:
    assert space.card.test_accuracy == 1.0
    assert space.accuracy(dataset.images, dataset.classes) == 1.0
    assert space.accuracy(dataset.images, (dataset.classes + 1) % 3) == 0.0
    assert space.card.labels == ["dark", "gray", "light"]
    assert space.card.image_shape == (1, 8, 8)


def test_the_accuracy_is_measured_on_the_test_images(dataset: Dataset) -> None:
    misnamed = dataclasses.replace(dataset, classes=(dataset.classes + 1) % 3)
    card = train_feature_network(dataset, misnamed, CONFIG).card
    assert card.test_accuracy == 0.0
    assert card.test_images == 20


def test_the_same_seed_gives_the_same_network(dataset: Dataset) -> None:
    config = dataclasses.replace(CONFIG, epochs=2, shift=1, flip=True)
    first, again = (train_feature_network(dataset, dataset, config).network.state_dict() for _ in range(2))
    other = train_feature_network(dataset, dataset, dataclasses.replace(config, seed=1)).network.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_every_step_is_reported(dataset: Dataset) -> None:
    reported: list[tuple[int, int, float]] = []
    train_feature_network(
        dataset, dataset, dataclasses.replace(CONFIG, epochs=2), lambda *values: reported.append(values)
    )
    assert [step for step, _, _ in reported] == [1, 2, 3, 4]
    assert {steps for _, steps, _ in reported} == {4}


def test_features_of_an_image_do_not_depend_on_its_batch(space: FeatureSpace, dataset: Dataset) -> None:
    together = space.extract(dataset.images)
    alone = torch.cat([space.extract(dataset.images[k : k + 1]).values for k in range(20)])
    torch.testing.assert_close(together.values, alone, rtol=1e-4, atol=1e-4)
    assert together.values.shape == (20, 128)


def test_data_without_a_full_batch_or_a_second_class_are_refused(dataset: Dataset) -> None:
    with pytest.raises(TrainingError, match="20 images do not fill a batch: --batch may be at most 20"):
        train_feature_network(dataset, dataset, dataclasses.replace(CONFIG, batch=21))
    with pytest.raises(TrainingError, match="stripes has 1 class"):
        train_feature_network(dataclasses.replace(dataset, labels=("dark",)), dataset, CONFIG)


def test_half_of_the_images_are_mirrored_if_configured() -> None:
    pictures = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(400, 1, 8, 8)
    config = FeatureTraining(flip=True, shift=0)
    found = augment(pictures, config, torch.Generator().manual_seed(0))
    mirrored = (found == pictures.flip(-1)).all(dim=(1, 2, 3))
    assert bool(((found == pictures).all(dim=(1, 2, 3)) ^ mirrored).all()), "whole images"
    assert 150 < int(mirrored.sum()) < 250
    assert torch.equal(augment(pictures, dataclasses.replace(config, flip=False), torch.Generator()), pictures)


def test_images_are_shifted_by_at_most_the_shift_over_black() -> None:
    pictures = torch.full((1, 1, 8, 8), 200, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    lost = set()
    for _ in range(60):
        moved = augment(pictures, FeatureTraining(shift=2, flip=False), generator)
        assert moved.shape == pictures.shape
        assert set(moved.unique().tolist()) <= {0, 200}
        lost.add(int((moved[0, 0, 4] == 0).sum()))
    assert lost == {0, 1, 2}


def test_a_saved_network_computes_the_same_features(written: Path, space: FeatureSpace, dataset: Dataset) -> None:
    again = load_features(written)
    assert again.card == space.card
    assert torch.equal(again.extract(dataset.images).values, space.extract(dataset.images).values)
    assert sorted(path.name for path in written.iterdir()) == [CARD, WEIGHTS]


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_features(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(f"{tmp_path / CARD}: missing")


def test_a_card_with_an_unknown_or_missing_key_is_refused(written: Path) -> None:
    card = json.loads((written / CARD).read_text())
    (written / CARD).write_text(json.dumps({**card, "depth": 3}))
    assert refusal(written).startswith(f"{written / CARD}: depth: ")
    del card["labels"]
    (written / CARD).write_text(json.dumps(card))
    assert refusal(written).startswith(f"{written / CARD}: labels: ")
    (written / CARD).write_text("{")
    assert refusal(written).startswith(f"{written / CARD}: not valid JSON")
    (written / CARD).write_text('{"labels": ["a"], "labels": ["b"]}')
    assert "the key 'labels' occurs twice" in refusal(written)


def test_missing_extra_and_wrongly_shaped_tensors_are_named(written: Path) -> None:
    path = written / WEIGHTS
    weights = load_file(path)
    save_file({name: value for name, value in weights.items() if name != "head.bias"}, path)
    assert refusal(written) == f"{path}: lacks 'head.bias' (1 tensor(s) missing)"
    save_file({**weights, "tail.bias": torch.zeros(1)}, path)
    assert refusal(written).startswith(f"{path}: holds 'tail.bias'")
    save_file({**weights, "head.bias": torch.zeros(4)}, path)
    assert refusal(written) == f"{path}: 'head.bias' has shape (4,), the config asks for (3,)"
    path.write_bytes(path.read_bytes()[:-9])
    assert refusal(written).startswith(f"{path}: not a complete safetensors file")
    path.unlink()
    assert refusal(written) == f"{path}: missing"


def test_images_of_another_shape_are_refused(space: FeatureSpace) -> None:
    with pytest.raises(CheckpointError, match=r"\(C, H, W\) = \(1, 8, 8\), not of \(3, 8, 8\)"):
        space.extract(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_a_tenth_of_a_folder_of_images_is_held_out(tmp_path: Path) -> None:
    for k in range(40):
        sub = tmp_path / ("dark" if k % 2 else "light")
        sub.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), k, dtype=np.uint8)).save(sub / f"{k}.png")
    training, test = load_splits(tmp_path, 8)
    assert (len(training), len(test)) == (36, 4)
    seen, held_out = (set(part.images[:, 0, 0, 0].tolist()) for part in (training, test))
    assert seen | held_out == set(range(40))
    again = load_splits(tmp_path, 8)[1]
    assert torch.equal(again.images, test.images)
    assert ((test.images[:, 0, 0, 0] % 2 == 0) == (test.classes == test.labels.index("light"))).all()


def test_shuffled_images_keep_their_classes_and_depend_only_on_the_seed(dataset: Dataset) -> None:
    mixed = shuffle(dataset, seed=1)
    assert sorted(mixed.classes.tolist()) == sorted(dataset.classes.tolist())
    assert torch.equal(shuffle(dataset, 1, 7).images, mixed.images[:7])
    assert not torch.equal(shuffle(dataset, 2).classes, mixed.classes)
    brightness = mixed.images.double().mean(dim=(1, 2, 3))
    assert torch.equal(brightness.argsort().argsort() >= 14, mixed.classes == 2)


def test_the_bundled_network_has_a_complete_card() -> None:
    space = load_features(FASHION_FEATURES)
    assert space.card.test_accuracy >= 0.92
    assert space.card.test_images == 10_000
    assert space.card.image_shape == (1, 28, 28)
    assert sum(path.stat().st_size for path in FASHION_FEATURES.iterdir()) <= 2_000_000


@pytest.mark.slow
@needs_fashion_mnist
def test_the_bundled_network_is_as_accurate_as_its_card_says() -> None:
    test = load_dataset(FASHION_MNIST, split="test")
    space = load_features(FASHION_FEATURES)
    assert space.card.labels == list(test.labels)
    # Within two images: other kernels may round a tie the other way.
    assert space.accuracy(test.images, test.classes) == pytest.approx(space.card.test_accuracy, abs=2e-4)
