"""Training and test images to compare with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from denoised.model.training.datasets.dataset import Dataset
from denoised.model.training.datasets.idx_files import has_idx_files
from denoised.model.training.datasets.sources import load_dataset

HELD_OUT = 10  # one image in this many is a test image if the data have no test split


def load_splits(folder: Path, size: int) -> tuple[Dataset, Dataset]:
    """(training data, test data): the two splits of IDX files; of a folder of images, every tenth is held out.

    Raises:
        DataError: if there is no dataset, or it is broken.
    """
    if has_idx_files(folder):
        return load_dataset(folder, size), load_dataset(folder, size, split="test")
    whole = load_dataset(folder, size)
    shuffled = shuffle(whole, seed=0)
    held_out = max(1, len(whole) // HELD_OUT)
    return _select(shuffled, slice(held_out, None)), _select(shuffled, slice(held_out))


def shuffle(data: Dataset, seed: int, count: int | None = None) -> Dataset:
    """The images in an order determined by the seed; only the first `count` of them, if that is given."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return _select(data, order[:count])


def _select(data: Dataset, index: Tensor | slice) -> Dataset:
    return dataclasses.replace(data, images=data.images[index], classes=data.classes[index])
