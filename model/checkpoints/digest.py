"""The digest of a model: equal for folders that make the same pictures, different for all others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from denoised.model.checkpoints.bounded_files import read_json
from denoised.model.checkpoints.labels import Classes

DIGITS = 12


def model_digest(unet_config: Path, scheduler_config: Path, weights: Mapping[str, Tensor], classes: Classes) -> str:
    """The first digits of a SHA-256 over a model's config, scheduler, classes and weights.

    weights: float32, under their current names, so that shards, precision and old names in the files do not count.
    Comments in the configs do not count either: keys that begin with an underscore, except the class.

    Raises:
        CheckpointError: if one of the two files cannot be read.
    """
    names = sorted(weights)
    facts = {
        "unet": _content(unet_config),
        "scheduler": _content(scheduler_config),
        "labels": classes.labels,
        "unconditional": classes.unconditional,
        "tensors": [(name, list(weights[name].shape)) for name in names],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in names:
        digest.update(weights[name].detach().contiguous().numpy().data)
    return digest.hexdigest()[:DIGITS]


def _content(path: Path) -> dict[str, Any]:
    return {key: value for key, value in read_json(path).items() if not key.startswith("_") or key == "_class_name"}
