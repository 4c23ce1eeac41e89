"""The digest of a model: equal for folders that make the same pictures, different for all others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from denoised.model.bounded_files import MAX_TOKENIZER_BYTES, read_bounded, read_json
from denoised.model.checkpoints.card_file import LearnedLevels
from denoised.model.checkpoints.labels import Classes

DIGITS = 12
CONFIGS = ("config.json", "scheduler_config.json", "model_index.json")


def pipeline_digest(
    files: Sequence[Path], weights: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None
) -> str:
    """The first digits of a SHA-256 over the files and the weights of a pipeline of several networks.

    files: configs and tokenizers; comments in JSON objects do not count, as in `model_digest`.
    weights: of all networks, under names that begin with the network's.
    settings: what else its pictures depend on.

    Raises:
        CheckpointError: if a file cannot be read.
    """
    contents = {
        f"{path.parent.name}/{path.name}": _content(path) if path.name in CONFIGS else _hash(path) for path in files
    }
    return _digest({**contents, **(settings or {})}, weights)


def model_digest(
    unet_config: Path,
    scheduler_config: Path,
    weights: Mapping[str, Tensor],
    classes: Classes,
    learned: Sequence[LearnedLevels] = (),
    consistency_levels: Sequence[float] = (),
) -> str:
    """The first digits of a SHA-256 over a model's config, scheduler, classes, noise levels and weights.

    weights: float32, under their current names, so that shards, precision and old names in the files do not count.
    Comments in the configs do not count either: keys that begin with an underscore, except the class.

    Raises:
        CheckpointError: if one of the two files cannot be read.
    """
    facts = {
        "unet": _content(unet_config),
        "scheduler": _content(scheduler_config),
        "labels": classes.labels,
        "unconditional": classes.unconditional,
        **learned_settings(learned),
        **({"consistency_levels": list(consistency_levels)} if consistency_levels else {}),
    }
    return _digest(facts, weights)


def learned_settings(learned: Sequence[LearnedLevels]) -> dict[str, Any]:
    """What the pictures of the spacing `learned` depend on; empty without such levels, as in folders of old."""
    return {"learned_levels": [each.model_dump() for each in learned]} if learned else {}


def _digest(facts: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    names = sorted(weights)
    facts = {**facts, "tensors": [(name, list(weights[name].shape)) for name in names]}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in names:
        digest.update(weights[name].detach().contiguous().numpy().data)
    return digest.hexdigest()[:DIGITS]


def _hash(path: Path) -> str:
    return hashlib.sha256(read_bounded(path, MAX_TOKENIZER_BYTES)).hexdigest()


def _content(path: Path) -> dict[str, Any]:
    return {key: value for key, value in read_json(path).items() if not key.startswith("_") or key == "_class_name"}
