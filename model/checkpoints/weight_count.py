"""How much memory the weights of a model folder take, from the headers of its files. Imports no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

from denoised.model.checkpoints.weight_files import ENCODER, NETWORK, find_shards, find_weights
from denoised.model.errors import CheckpointError

BYTES_PER_NUMBER = {"bfloat16": 2, "float16": 2}  # others are served in float32


def weight_bytes(folder: Path, precision: str = "float32") -> int:
    """The bytes of all weights in a model folder and its parts, as they are served.

    A decoder is served in float32, which counts as the precision here; what backends pack or copy is not counted.

    Raises:
        CheckpointError: for a file that cannot be read.
    """
    parts = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())] if folder.is_dir() else []
    numbers = sum(_numbers(part, stem) for part in parts for stem in (NETWORK, ENCODER))
    return numbers * BYTES_PER_NUMBER.get(precision, 4)


def _numbers(part: Path, stem: str) -> int:
    """How many numbers the tensors of a part have; 0 if it has none."""
    if not any(part.glob(f"{stem}*safetensors*")):
        return 0
    return sum(_numbers_of(file) for file in find_shards(find_weights(part, stem)))


def _numbers_of(file: Path) -> int:
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file}: its header cannot be read ({type(error).__name__})") from error
