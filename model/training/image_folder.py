"""A folder of images as a dataset: one sub-folder per class."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import ImageColor
from torch import Tensor

from denoised.model.checkpoints.labels import check_labels
from denoised.model.errors import CheckpointError, DataError
from denoised.model.training.dataset import WHERE_TO_GET, Dataset
from denoised.model.training.images import read_image

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
UNREADABLE = ("refuse", "skip")  # what to do about files that cannot be read


def load_image_folder(folder: Path, size: int, background: str = "white", unreadable: str = "refuse") -> Dataset:
    """One class per sub-folder, named after it; images as `read_image` reads them, in one channel if all are gray.

    background: the color behind transparent images, a CSS color name or #rrggbb.
    unreadable: "refuse" a dataset with broken files, or "skip" them. Every file is tried first either way.

    Raises:
        DataError: if there are no classes, two have the same name apart from its Unicode normalization, a class has no
            readable image, or broken files are refused.
    """
    rgb = _parse_color(background)
    files = _find_images(folder)
    labels = sorted({label for label, _ in files})
    try:
        check_labels(labels)
    except CheckpointError as error:
        raise DataError(f"the sub-folders of {folder} cannot all be classes: {error}; rename or merge them") from error
    readable, broken = [], []
    for label, path in files:
        try:
            readable.append((label, read_image(path, size, rgb)))
        except DataError as error:
            broken.append(str(error))
    if broken and unreadable == "refuse":
        raise DataError(
            f"{len(broken)} of {len(files)} files cannot be read: {'; '.join(broken)}: "
            "repair or remove them, or choose --unreadable skip"
        )
    if empty := sorted(set(labels) - {label for label, _ in readable}):
        raise DataError(f"{folder / empty[0]} holds no readable image ({'; '.join(broken)}): repair or remove it")
    return Dataset(
        images=_stack([image for _, image in readable]),
        classes=torch.tensor([labels.index(label) for label, _ in readable]),
        labels=tuple(labels),
        source=folder.name,
        skipped=tuple(broken),
    )


def _find_images(folder: Path) -> list[tuple[str, Path]]:
    """(label, path) of every file with an image suffix, in a fixed order."""
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


def _stack(images: list[Tensor]) -> Tensor:
    """(N, 3, H, W), or (N, 1, H, W) if none of the images has any color."""
    if all((image[0] == image[1]).all() and (image[1] == image[2]).all() for image in images):
        images = [image[:1] for image in images]
    return torch.stack(images)


def _parse_color(text: str) -> tuple[int, int, int]:
    try:
        red, green, blue, *_ = ImageColor.getrgb(text)
    except ValueError as error:
        raise DataError(f"background = {text!r} is not a color (use a CSS color name or #rrggbb)") from error
    return red, green, blue
