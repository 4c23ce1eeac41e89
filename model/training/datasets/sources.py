"""Loading training data of any kind: IDX files, a folder of images, or scikit-learn's digits.

Missing or broken data raise a one-line `DataError` that says what to do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from denoised.model.errors import DataError
from denoised.model.training.datasets.dataset import WHERE_TO_GET, Dataset
from denoised.model.training.datasets.idx_files import has_idx_files, load_idx
from denoised.model.training.datasets.image_folder import load_image_folder

DIGITS = Path("digits")  # the value of --data that selects scikit-learn's digits


def load_dataset(
    folder: Path, size: int = 64, split: str = "train", *, background: str = "white", unreadable: str = "refuse"
) -> Dataset:
    """The dataset in a folder, whichever kind it holds; the path `digits` selects scikit-learn's.

    size, background, unreadable: for a folder of images only, see `load_image_folder`.
    split: "train" or "test"; a folder of images has only one split.

    Raises:
        DataError: if there is no dataset, or it is broken.
    """
    if folder == DIGITS and not folder.exists():
        return load_digits(split)
    if not folder.is_dir():
        raise DataError(f"no dataset at {folder}: no such folder ({WHERE_TO_GET}; or --data {DIGITS})")
    if has_idx_files(folder):
        return load_idx(folder, split)
    return load_image_folder(folder, size, background, unreadable)


def load_digits(split: str = "train") -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8×8, gray (Alpaydin & Kaynak 1998), their levels 0 … 16 as bytes.

    scikit-learn defines no split: every fifth image, starting with the first, is the test split here.

    Raises:
        DataError: if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(f"--data {DIGITS} needs scikit-learn: install denoised's extra 'train'") from error
    bunch = datasets.load_digits()
    in_test = np.arange(len(bunch.target)) % 5 == 0
    selected = in_test if split == "test" else ~in_test
    return Dataset(
        images=torch.from_numpy(np.rint(bunch.images[selected] * (255 / 16)).astype(np.uint8))[:, None],
        classes=torch.from_numpy(bunch.target[selected].astype(np.int64)),
        labels=tuple(str(digit) for digit in range(10)),
        source="scikit-learn's digits",
    )
