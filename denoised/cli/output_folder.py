"""The folder that images are written to: checked before the work, and no file in it is ever overwritten."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

MAX_NAME_BYTES = 150  # of a file name's first part; file systems allow 255 in all


class OutputFolder:
    """A folder, created if it does not exist.

    Raises:
        OSError: if it is not a folder, or cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"--out {path} is a file: name a folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise OSError(f"--out {path} cannot be written ({error.strerror}): choose another folder") from error

    def save(self, label: str, seed: int, suffix: str, data: bytes) -> Path:
        """Write an image as `label-seed.suffix`. Returns its path.

        If that file exists with other content, -2, -3 and so on are appended to the name.
        """
        first = f"{file_name(label)}-{seed}"
        for name in itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2))):
            path = self._path / f"{name}.{suffix}"
            try:
                with path.open("xb") as file:
                    file.write(data)
            except FileExistsError:
                if not _holds(path, data):
                    continue
            return path
        raise AssertionError("the names never end")


def file_name(label: str) -> str:
    """A label as the first part of a file name: letters and digits of any script, and dashes."""
    name = "".join(character if character.isalnum() else "-" for character in label).strip("-")
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore") or "image"


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file already has this content."""
    try:
        return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False
