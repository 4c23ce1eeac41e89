"""A small data set and a feature space for it."""

from __future__ import annotations

import dataclasses
import gzip
import struct
from pathlib import Path

import pytest
import torch

from denoised.model.evaluation.feature_training import FeatureTraining, train_feature_network
from denoised.model.evaluation.features import save_features
from denoised.model.training.datasets.dataset import Dataset


@pytest.fixture
def data(tmp_path: Path, dataset: Dataset) -> Path:
    """The stripes as IDX files; the test images are the training images."""
    folder = tmp_path / "stripes"
    folder.mkdir()
    for name, values in (("images-idx3", dataset.images[:, 0]), ("labels-idx1", dataset.classes.to(torch.uint8))):
        array = values.numpy()
        content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        for split in ("train", "t10k"):
            (folder / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.fixture
def features(tmp_path: Path, dataset: Dataset) -> Path:
    config = FeatureTraining(epochs=20, batch=10, shift=0, learning_rate=1e-2)
    named = dataclasses.replace(dataset, labels=("0", "1", "2"))
    save_features(tmp_path / "space", train_feature_network(named, named, config))
    return tmp_path / "space"
