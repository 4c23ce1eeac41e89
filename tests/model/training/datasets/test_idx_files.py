"""IDX files, Fashion-MNIST's format: read completely, or refused in one line that says what to do."""

from __future__ import annotations

import gzip
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from denoised.model.errors import DataError
from denoised.model.training.datasets.dataset import to_unit
from denoised.model.training.datasets.idx_files import FASHION_LABELS
from denoised.model.training.datasets.sources import load_dataset
from tests.requirements import FASHION_MNIST, needs_fashion_mnist

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(values: np.ndarray) -> bytes:
    """A file in the IDX format: 0, 0, 8 for unsigned bytes, the rank, big-endian sizes, the bytes."""
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(compressed)`: a folder with five 4×6 training images and two test images of three classes."""

    def files(compressed: bool = True, train: int = 5, labels: int = 5) -> Path:
        folder = tmp_path / "digits"
        folder.mkdir()
        contents = (
            np.arange(train * 24, dtype=np.uint8).reshape(train, 4, 6),
            (np.arange(labels) % 3).astype(np.uint8),
            np.zeros((2, 4, 6), np.uint8),
            np.zeros(2, np.uint8),
        )
        for name, values in zip(NAMES, contents, strict=True):
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
            else:
                (folder / name).write_bytes(idx(values))
        return folder

    return files


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "apt install dataset-fashion-mnist" in message or "sub-folder" in message, "says what to do"
    return message


@pytest.mark.parametrize("compressed", [True, False])
def test_images_and_labels_are_read_compressed_or_not(write: Callable[..., Path], compressed: bool) -> None:
    data = load_dataset(write(compressed))
    assert data.images.shape == (5, 1, 4, 6)
    assert data.images.dtype == torch.uint8
    assert data.images[2, 0, 1, 3].item() == 2 * 24 + 6 + 3
    assert data.classes.tolist() == [0, 1, 2, 0, 1]
    assert data.classes.dtype == torch.int64
    assert data.labels == ("0", "1", "2")
    assert data.source == "digits"
    assert len(data) == 5


def test_the_test_split_is_the_other_two_files(write: Callable[..., Path]) -> None:
    assert load_dataset(write(), split="test").images.shape == (2, 1, 4, 6)


def test_bytes_become_numbers_from_minus_one_to_one() -> None:
    unit = to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert unit.dtype == torch.float32
    assert unit.tolist() == pytest.approx([-1.0, -0.6, 1.0])


@pytest.mark.parametrize("name", NAMES)
def test_each_of_the_four_files_must_exist(write: Callable[..., Path], name: str) -> None:
    folder = write()
    (folder / f"{name}.gz").unlink()
    assert refusal(folder).startswith(f"{folder} lacks {name}[.gz] (")


@pytest.mark.parametrize("keep", [0, 10, 40])
def test_a_truncated_compressed_file_is_named(write: Callable[..., Path], keep: int) -> None:
    path = write() / f"{NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:keep])
    assert refusal(path.parent).startswith(f"{path} is ")


def test_a_compressed_file_with_damage_in_the_middle_is_named(write: Callable[..., Path]) -> None:
    path = write() / f"{NAMES[0]}.gz"
    whole = bytearray(path.read_bytes())
    for place in range(10, len(whole) - 8):
        damaged = whole.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(bytes(damaged))
        assert refusal(path.parent).startswith(f"{path} ")


@pytest.mark.parametrize("keep", [0, 3, 12, 100])
def test_a_truncated_uncompressed_file_is_named(write: Callable[..., Path], keep: int) -> None:
    path = write(False) / NAMES[0]
    path.write_bytes(path.read_bytes()[:keep])
    assert refusal(path.parent).startswith(f"{path} ")


def test_a_file_that_is_too_long_says_by_how_much(write: Callable[..., Path]) -> None:
    path = write(False) / NAMES[0]
    path.write_bytes(path.read_bytes() + b"\0")
    assert refusal(path.parent).startswith(f"{path} holds 121 bytes, but its header says 120: download it again")


def test_a_compressed_file_expands_no_further_than_its_header_says(write: Callable[..., Path]) -> None:
    path = write() / f"{NAMES[0]}.gz"
    with gzip.open(path) as file:
        whole = file.read()
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(whole)
        for _ in range(300):
            file.write(bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(path.parent).startswith(f"{path} holds 121 bytes, but its header says 120")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB on Linux


@pytest.mark.parametrize("magic", [b"\0\0\x08\x01", b"\0\0\x0d\x03", b"\x89PNG"])
def test_a_file_with_another_magic_number_is_named(write: Callable[..., Path], magic: bytes) -> None:
    path = write(False) / NAMES[0]
    path.write_bytes(magic + path.read_bytes()[4:])
    assert refusal(path.parent).startswith(f"{path} is not an IDX file of 3 dimension(s): download it again")


def test_a_header_of_absurd_sizes_is_refused(write: Callable[..., Path]) -> None:
    path = write(False) / NAMES[0]
    path.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"\0" * 8)
    assert refusal(path.parent).startswith(f"{path} holds 8 bytes, but its header says ")


def test_the_numbers_of_labels_and_images_must_agree(write: Callable[..., Path]) -> None:
    folder = write(labels=4)
    assert refusal(folder).startswith(f"{folder}: 5 images but 4 labels in the train files")


def test_files_without_images_are_refused(write: Callable[..., Path]) -> None:
    folder = write(train=0, labels=0)
    assert refusal(folder).startswith(f"{folder}: no images in the train files")


@needs_fashion_mnist
def test_fashion_mnist_is_recognized_by_its_labels() -> None:
    data = load_dataset(FASHION_MNIST)
    assert data.images.shape == (60_000, 1, 28, 28)
    assert data.labels == FASHION_LABELS
    assert data.source == "Fashion-MNIST"
    assert torch.bincount(data.classes).tolist() == [6_000] * 10
    assert load_dataset(FASHION_MNIST, split="test").images.shape == (10_000, 1, 28, 28)
