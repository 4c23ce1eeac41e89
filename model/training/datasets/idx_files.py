"""Datasets in MNIST's IDX format (http://yann.lecun.com/exdb/mnist/), Fashion-MNIST among them."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from denoised.model.errors import DataError
from denoised.model.training.datasets.dataset import WHERE_TO_GET, Dataset

IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MAX_BYTES = 2**31  # of a file, decompressed
UNSIGNED_BYTE = 8  # the IDX type code of the only element type supported here
FASHION_LABELS = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# SHA-256 of the label bytes (after the 8-byte header) of each split of Fashion-MNIST.
FASHION_DIGESTS = (
    "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
)


def has_idx_files(folder: Path) -> bool:
    """Whether the folder holds any of the IDX files, and with them a training and a test split."""
    return any(_find(folder, name) for names in IDX_FILES.values() for name in names)


def load_idx(folder: Path, split: str = "train") -> Dataset:
    """One split of a dataset in MNIST's format. All four files must exist, gzipped or not.

    Raises:
        DataError: for a missing, truncated or inconsistent file, by name.
    """
    for name in (name for names in IDX_FILES.values() for name in names):
        if _find(folder, name) is None:
            raise DataError(f"{folder} lacks {name}[.gz] ({WHERE_TO_GET})")
    image_name, label_name = IDX_FILES[split]
    images = _read(folder, image_name, dimensions=3)
    classes = _read(folder, label_name, dimensions=1)
    if not len(images):
        raise DataError(f"{folder}: no images in the {split} files ({WHERE_TO_GET})")
    if len(images) != len(classes):
        raise DataError(
            f"{folder}: {len(images)} images but {len(classes)} labels in the {split} files: "
            f"download them again ({WHERE_TO_GET})"
        )
    digest = hashlib.sha256(classes.tobytes()).hexdigest()
    # IDX files carry no class names: Fashion-MNIST is recognized by its labels, other classes are numbered.
    names = FASHION_LABELS if digest in FASHION_DIGESTS else tuple(str(k) for k in range(int(classes.max()) + 1))
    return Dataset(
        images=torch.from_numpy(images)[:, None],
        classes=torch.from_numpy(classes.astype(np.int64)),
        labels=names,
        source="Fashion-MNIST" if names == FASHION_LABELS else folder.name,
    )


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _read(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """The array in a file: two zero bytes, the type code, the rank, one big-endian size per dimension, the data."""
    path = _find(folder, name)
    assert path is not None, "checked by the caller"
    header = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(header)
            if len(raw) < header or raw[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
                raise DataError(
                    f"{path} is not an IDX file of {dimensions} dimension(s): download it again ({WHERE_TO_GET})"
                )
            expected = math.prod(struct.unpack(f">{dimensions}I", raw[4:]))
            raw += file.read(
                min(expected, MAX_BYTES) + 1
            )  # no more than the header says, whatever a .gz file expands to
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is broken ({error}): download it again ({WHERE_TO_GET})") from error
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    if len(raw) - header != expected:
        raise DataError(
            f"{path} holds {len(raw) - header} bytes, but its header says {expected}: "
            f"download it again ({WHERE_TO_GET})"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape).copy()
