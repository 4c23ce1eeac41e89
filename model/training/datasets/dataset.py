"""The training set in memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

WHERE_TO_GET = "on Debian: apt install dataset-fashion-mnist, then --data /usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Dataset:
    """Labeled images, held in memory as bytes.

    images: (N, C, H, W) uint8.
    classes: (N,) int64 in 0 … K−1.
    labels: the K class names.
    source: where the images come from, for people to read.
    skipped: the files and hidden folders of an image folder that were left out, each with the reason.
    """

    images: Tensor
    classes: Tensor
    labels: tuple[str, ...]
    source: str
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def to_unit(images: Tensor) -> Tensor:
    """Bytes to floats in [−1, 1]: k/127.5 − 1."""
    return images.float() / 127.5 - 1.0
