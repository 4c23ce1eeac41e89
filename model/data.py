"""Training images: the four IDX files of Fashion-MNIST, or a folder of images.

A data set is held in memory as bytes. What is missing or broken is a `DataError` of one
line that says what to do.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from model.errors import DataError

IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
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
# SHA-256 of the label bytes (after the 8-byte header) of either split of Fashion-MNIST.
FASHION_DIGESTS = (
    "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
)
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
WHERE_TO_GET = "on Debian: apt install dataset-fashion-mnist, then --data /usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Dataset:
    """images: (N, C, H, W) uint8; classes: (N,) int64 in 0 … K−1; labels: K names; source: in words."""

    images: Tensor
    classes: Tensor
    labels: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.images)


def to_unit(images: Tensor) -> Tensor:
    """Bytes → floats in [−1, 1]: k/127.5 − 1."""
    return images.float() / 127.5 - 1.0


def load_dataset(folder: Path, size: int = 64, split: str = "train") -> Dataset:
    """Read a data set, whatever of the two kinds the folder holds.

    size: height and width that a folder of images is cropped and resized to; IDX images keep theirs.

    Raises:
        DataError: when there is no data set, or it is broken.
    """
    if not folder.is_dir():
        raise DataError(f"no data set at {folder}: no such folder ({WHERE_TO_GET})")
    if holds_idx(folder):
        return load_idx(folder, split)
    return load_image_folder(folder, size)


def holds_idx(folder: Path) -> bool:
    """Whether the folder has IDX files, and with them a training and a test split."""
    return any(_idx_path(folder, name) for names in IDX_FILES.values() for name in names)


def load_idx(folder: Path, split: str = "train") -> Dataset:
    """One split of a data set in MNIST's format; all four files must be there, gzipped or not.

    Raises:
        DataError: for a missing, truncated or inconsistent file, by name.
    """
    for name in (name for names in IDX_FILES.values() for name in names):
        if _idx_path(folder, name) is None:
            raise DataError(f"{folder} lacks {name}[.gz] ({WHERE_TO_GET})")
    image_name, label_name = IDX_FILES[split]
    images = _read_idx(folder, image_name, dimensions=3)
    classes = _read_idx(folder, label_name, dimensions=1)
    if not len(images):
        raise DataError(f"{folder}: no images in the {split} files ({WHERE_TO_GET})")
    if len(images) != len(classes):
        raise DataError(
            f"{folder}: {len(images)} images but {len(classes)} labels in the {split} files: "
            f"fetch them again ({WHERE_TO_GET})"
        )
    digest = hashlib.sha256(classes.tobytes()).hexdigest()
    names = FASHION_LABELS if digest in FASHION_DIGESTS else tuple(str(k) for k in range(int(classes.max()) + 1))
    return Dataset(
        images=torch.from_numpy(images)[:, None],
        classes=torch.from_numpy(classes.astype(np.int64)),
        labels=names,
        source="Fashion-MNIST" if names == FASHION_LABELS else folder.name,
    )


def load_image_folder(folder: Path, size: int) -> Dataset:
    """One sub-folder per class, its name the label; images as RGB, cropped to a square, resized.

    Raises:
        DataError: when there are no classes or no images, or a file is no image.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [(k, path) for k, sub in enumerate(classes) for path in _image_files(sub)]
    if not files:
        raise DataError(
            f"{folder} holds neither IDX files nor sub-folders of images: make one sub-folder per class, "
            f"with {', '.join(sorted(IMAGE_SUFFIXES))} files in it ({WHERE_TO_GET})"
        )
    pictures = [_read_image(path, size) for _, path in files]
    if all((picture[0] == picture[1]).all() and (picture[1] == picture[2]).all() for picture in pictures):
        pictures = [picture[:1] for picture in pictures]
    return Dataset(
        images=torch.stack(pictures),
        classes=torch.tensor([k for k, _ in files]),
        labels=tuple(path.name for path in classes),
        source=folder.name,
    )


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _read_image(path: Path, size: int) -> Tensor:
    """A file as (3, size, size) uint8: turned as EXIF says, the middle square, Lanczos."""
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no readable image ({error}): repair or remove it") from error
    square = ImageOps.fit(upright, (size, size), method=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """The IDX format: two zero bytes, 8 = unsigned byte, rank; then big-endian sizes; then the bytes."""
    path = _idx_path(folder, name)
    assert path is not None, "checked by the caller"
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is broken ({error}): fetch it again ({WHERE_TO_GET})") from error
    header = 4 + 4 * dimensions
    if len(raw) < header or raw[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path} is no IDX file of {dimensions} dimension(s): fetch it again ({WHERE_TO_GET})")
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    expected = int(np.prod(shape, dtype=np.int64))
    if len(raw) - header != expected:
        raise DataError(
            f"{path} holds {len(raw) - header} bytes, its header says {expected}: fetch it again ({WHERE_TO_GET})"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape).copy()
