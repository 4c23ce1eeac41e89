"""Read the small files of a model folder: regular files only, and no more than a few MiB. Imports no torch.

A folder comes from anywhere. A FIFO or a device would be read forever, and a config of gigabytes fills the memory
before a word of it is checked.
"""

from __future__ import annotations

import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from denoised.model.errors import CheckpointError, abbreviate

MAX_BYTES = 1024**2  # of a config
MAX_BRACKETS = 20_000  # of a JSON file: each list costs the garbage collector, which scans all that torch has made
MAX_INDEX_BYTES = 4 * 1024**2  # of an index of weights; that of a network with 10,000 tensors has 1 MiB
MAX_TOKENIZER_BYTES = 8 * 1024**2  # of a tokenizer's file; CLIP's largest has 4 MiB


def check_regular(path: Path) -> int:
    """Check that a path leads to a regular file. Returns its size in bytes.

    Raises:
        CheckpointError: if it is missing, cannot be reached, or is a folder, a FIFO or a device.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise CheckpointError(f"{path}: missing") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: is not a regular file")
    return status.st_size


def read_bounded(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises:
        CheckpointError: see `check_regular`; or for a larger file.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > limit:
        raise CheckpointError(f"{path}: is larger than {limit // 1024**2} MiB")
    return content


def read_json(path: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes.

    Raises:
        CheckpointError: if the file is missing, too large, or holds no JSON object.
    """
    written = read_bounded(path, limit)
    if (brackets := written.count(b"[") + written.count(b"{")) > MAX_BRACKETS:
        raise CheckpointError(f"{path}: holds {brackets} lists and objects (allowed: {MAX_BRACKETS})")
    try:
        content = json.loads(written.decode(), object_pairs_hook=unique_members)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return content


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `json.loads`: of a key that occurs twice, readers would take one or the other value.

    Raises:
        ValueError: naming such a key.
    """
    members = dict(pairs)
    if len(members) < len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {abbreviate(repeated)} occurs twice")
    return members
