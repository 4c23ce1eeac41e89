"""A folder of images as a dataset: one sub-folder per class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import ImageColor
from torch import Tensor

from denoised.model.checkpoints.labels import check_labels
from denoised.model.errors import CheckpointError, DataError, UnreadableImages
from denoised.model.training.datasets.dataset import WHERE_TO_GET, Dataset
from denoised.model.training.datasets.images import read_image

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# Of file managers, systems and file servers, in lower case; whole names, since a class may be called "#1".
PREVIEW_FOLDERS = {"__macosx", "thumbs", "$recycle.bin", "lost+found", "system volume information"}
PREVIEW_FOLDERS |= {"@eadir", "@tmp", "@recycle", "@sharebin", "@recently-snapshot", "#recycle", "#snapshot"}
LISTED = 5  # hidden names in a message
UNREADABLE = ("refuse", "skip")  # what to do about files that cannot be read


def load_image_folder(folder: Path, size: int, background: str = "white", unreadable: str = "refuse") -> Dataset:
    """One class per sub-folder, named after it; images as `read_image` reads them, in one channel if all are gray.

    background: the color behind transparent images, a CSS color name or #rrggbb.
    unreadable: "refuse" a dataset with broken files, or "skip" them. Every file is tried first either way.

    Raises:
        DataError: if there are no classes, two have the same name apart from its Unicode normalization, a class has no
            readable image, or broken files are refused.
    """
    rgb = parse_color(background)
    files, hidden = _find_images(folder)
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
        raise UnreadableImages(
            f"{len(broken)} of {len(files)} files cannot be read: {'; '.join(broken)}: repair or remove them"
        )
    if empty := sorted(set(labels) - {label for label, _ in readable}):
        raise DataError(f"{folder / empty[0]} holds no readable image ({'; '.join(broken)}): repair or remove it")
    return Dataset(
        images=_stack([image for _, image in readable]),
        classes=torch.tensor([labels.index(label) for label, _ in readable]),
        labels=tuple(labels),
        source=folder.name,
        skipped=(*_summary(hidden), *broken),
    )


def _find_images(folder: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """(label, path) of every file with an image suffix, in a fixed order, and what is hidden.

    Other programs keep previews and copies next to pictures: in hidden files and folders, and in some of known names.
    """
    files: list[tuple[str, Path]] = []
    hidden: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not _is_hidden(path.name):
            files += [(path.name, file) for file in find_image_files(path, hidden)]
        elif path.is_dir():
            hidden.append(str(path.relative_to(folder)))
    if not files:
        raise DataError(
            f"{folder} holds neither IDX files nor sub-folders of images: make one sub-folder per class, "
            f"with {', '.join(sorted(IMAGE_SUFFIXES))} files in it ({WHERE_TO_GET})"
        )
    return files, hidden


def find_image_files(folder: Path, hidden: list[str]) -> Iterator[Path]:
    """The image files of a folder and its subfolders, sorted. What is left out is added to `hidden`."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if _is_hidden(path.name):
                hidden.append(f"{folder.name}/{path.name}")
            else:
                yield from find_image_files(path, hidden)
        elif path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
            if _is_hidden(path.name):
                hidden.append(f"{folder.name}/{path.name}")
            else:
                yield path


def _summary(hidden: Sequence[str]) -> list[str]:
    """What was left out, in one line."""
    if not hidden:
        return []
    more = f" and {len(hidden) - LISTED} more" if len(hidden) > LISTED else ""
    return [f"hidden files and folders: {', '.join(hidden[:LISTED])}{more}"]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in PREVIEW_FOLDERS


def _stack(images: list[Tensor]) -> Tensor:
    """(N, 3, H, W), or (N, 1, H, W) if none of the images has any color."""
    if all((image[0] == image[1]).all() and (image[1] == image[2]).all() for image in images):
        images = [image[:1] for image in images]
    return torch.stack(images)


def parse_color(text: str) -> tuple[int, int, int]:
    """RGB bytes of a CSS color name or #rrggbb.

    Raises:
        DataError: for a text that is neither.
    """
    try:
        red, green, blue, *_ = ImageColor.getrgb(text)
    except ValueError as error:
        raise DataError(f"background = {text!r} is not a color (use a CSS color name or #rrggbb)") from error
    return red, green, blue
