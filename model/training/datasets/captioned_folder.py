"""A folder of pictures with captions: a text file next to each picture, or one `metadata.jsonl` for all of them.

Source of the format of `metadata.jsonl`: the image folders of Hugging Face's `datasets`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from denoised.model.bounded_files import read_bounded
from denoised.model.errors import CheckpointError, DataError, abbreviate
from denoised.model.training.datasets.image_folder import IMAGE_SUFFIXES, find_image_files

METADATA = "metadata.jsonl"  # one JSON object a line: {"file_name": "goat.png", "text": "a goat on a hill"}
MAX_CAPTION = 2000  # characters, as in a prompt
MAX_METADATA = 256 * 1024**2  # bytes
LISTED = 3  # pictures without captions that a message names


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture file and its caption."""

    path: Path
    caption: str


def read_captioned_folder(folder: Path) -> list[CaptionedPicture]:
    """The pictures of a folder and its subfolders with their captions, in order of path. No picture is opened.

    Raises:
        DataError: if there are none, or a picture has no caption; the message names some of them.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    captions = _read_metadata(folder / METADATA) if (folder / METADATA).exists() else None
    found, missing = [], []
    for path in find_image_files(folder, []):
        caption = _beside(path) if captions is None else captions.get(path.relative_to(folder).as_posix())
        if caption:
            found.append(CaptionedPicture(path, caption))
        else:
            missing.append(str(path.relative_to(folder)))
    if missing:
        where = f"a line in {METADATA}" if captions is not None else "a .txt file of the same name next to it"
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        raise DataError(f"{folder}: {', '.join(missing[:LISTED])}{more} have no caption: each needs {where}")
    if not found:
        raise DataError(f"{folder} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def _beside(path: Path) -> str | None:
    text = path.with_suffix(".txt")
    return _checked(_read(text, 4 * MAX_CAPTION), text) if text.exists() else None


def _read_metadata(path: Path) -> Mapping[str, str]:
    captions = {}
    for number, line in enumerate(_read(path, MAX_METADATA).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, caption = row["file_name"], row["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            message = f"{path}, line {number}: not an object with file_name and text ({type(error).__name__}: {error})"
            raise DataError(message) from error
        if not isinstance(name, str) or not isinstance(caption, str):
            raise DataError(f"{path}, line {number}: file_name and text are not both strings")
        captions[name.removeprefix("./")] = _checked(caption, path)
    return captions


def _read(path: Path, limit: int) -> str:
    try:
        return read_bounded(path, limit).decode()
    except CheckpointError as error:
        raise DataError(str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text") from error


def _checked(caption: str, path: Path) -> str:
    caption = caption.strip()
    if len(caption) > MAX_CAPTION:
        shown = abbreviate(caption)
        raise DataError(f"{path}: the caption {shown} has {len(caption)} characters (allowed: {MAX_CAPTION})")
    return caption
