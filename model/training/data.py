"""Training images: Fashion-MNIST's four IDX files, a folder of images, scikit-learn's digits.

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
from PIL import ImageColor
from torch import Tensor

from denoised.model.errors import DataError
from denoised.model.training.images import read_image

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
DIGITS = Path("digits")  # the word that --data takes for scikit-learn's
UNREADABLE = ("refuse", "skip")
WHERE_TO_GET = "on Debian: apt install dataset-fashion-mnist, then --data /usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Dataset:
    """images: (N, C, H, W) uint8; classes: (N,) int64 in 0 … K−1; labels: K names; source: in words.

    skipped: the files of a folder that could not be read, each with the reason.
    """

    images: Tensor
    classes: Tensor
    labels: tuple[str, ...]
    source: str
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def to_unit(images: Tensor) -> Tensor:
    """Bytes → floats in [−1, 1]: k/127.5 − 1."""
    return images.float() / 127.5 - 1.0


def load_dataset(
    folder: Path, size: int = 64, split: str = "train", *, background: str = "white", unreadable: str = "refuse"
) -> Dataset:
    """Read a data set, whatever of the kinds the folder holds; `digits` alone is scikit-learn's.

    size, background, unreadable: of a folder of images, see `load_image_folder`; others keep their size.
    split: "train" or "test"; a folder of images has but one.

    Raises:
        DataError: when there is no data set, or it is broken.
    """
    if folder == DIGITS and not folder.exists():
        return load_digits(split)
    if not folder.is_dir():
        raise DataError(f"no data set at {folder}: no such folder ({WHERE_TO_GET}; or --data {DIGITS})")
    if holds_idx(folder):
        return load_idx(folder, split)
    return load_image_folder(folder, size, background, unreadable)


def load_digits(split: str = "train") -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8×8, grey (Alpaydin & Kaynak 1998), 0 … 16 → bytes.

    Every fifth image, from the first on, is the test split; scikit-learn has no split of its own.

    Raises:
        DataError: without scikit-learn.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(f"--data {DIGITS} needs scikit-learn: install denoised's extra 'train'") from error
    bunch = datasets.load_digits()
    test = np.arange(len(bunch.target)) % 5 == 0
    chosen = test if split == "test" else ~test
    return Dataset(
        images=torch.from_numpy(np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8))[:, None],
        classes=torch.from_numpy(bunch.target[chosen].astype(np.int64)),
        labels=tuple(str(digit) for digit in range(10)),
        source="scikit-learn's digits",
    )


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


def load_image_folder(folder: Path, size: int, background: str = "white", unreadable: str = "refuse") -> Dataset:
    """One sub-folder per class, its name the label; images as `read_image` reads them, grey if all of them are.

    background: the colour behind transparent pictures, a name of CSS or #rrggbb.
    unreadable: "refuse" a set that holds broken files, or "skip" them; either way every file is tried first.

    Raises:
        DataError: when there are no classes, one has no readable image, or a file is refused.
    """
    ground = _colour(background)
    files = _image_files(folder)
    read, broken = [], []
    for label, path in files:
        try:
            read.append((label, read_image(path, size, ground)))
        except DataError as error:
            broken.append(str(error))
    if broken and unreadable == "refuse":
        raise DataError(
            f"{len(broken)} of {len(files)} files cannot be read: {'; '.join(broken)}: "
            "repair or remove them, or choose --unreadable skip"
        )
    labels = sorted({label for label, _ in files})
    if lost := sorted(set(labels) - {label for label, _ in read}):
        raise DataError(f"{folder / lost[0]} holds no readable image ({'; '.join(broken)}): repair or remove it")
    return Dataset(
        images=_stacked([picture for _, picture in read]),
        classes=torch.tensor([labels.index(label) for label, _ in read]),
        labels=tuple(labels),
        source=folder.name,
        skipped=tuple(broken),
    )


def _image_files(folder: Path) -> list[tuple[str, Path]]:
    """(label, path) of every file with an image's suffix, in a fixed order."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [
        (sub.name, path) for sub in classes for path in sorted(sub.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise DataError(
            f"{folder} holds neither IDX files nor sub-folders of images: make one sub-folder per class, "
            f"with {', '.join(sorted(IMAGE_SUFFIXES))} files in it ({WHERE_TO_GET})"
        )
    return files


def _stacked(pictures: list[Tensor]) -> Tensor:
    """(N, 3, H, W), or (N, 1, H, W) when there is no colour in any of them."""
    if all((picture[0] == picture[1]).all() and (picture[1] == picture[2]).all() for picture in pictures):
        pictures = [picture[:1] for picture in pictures]
    return torch.stack(pictures)


def _colour(word: str) -> tuple[int, int, int]:
    try:
        red, green, blue, *_ = ImageColor.getrgb(word)
    except ValueError as error:
        raise DataError(f"background = {word!r} is no colour (a name of CSS, or #rrggbb)") from error
    return red, green, blue


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
