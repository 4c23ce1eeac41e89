"""The adapter files of a folder: which there are, and their tensors, checked before one is read.

Only safetensors files are read, because a pickle can run code. An adapter's name is its file's name without the ending.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from denoised.model.bounded_files import MAX_BRACKETS, check_regular, unique_members
from denoised.model.checkpoints.digest import DIGITS
from denoised.model.checkpoints.lora.lora import LoraTarget, read_lora
from denoised.model.checkpoints.weight_files import find_shards
from denoised.model.checkpoints.weights import FLOATS, StoredTensor, read_stored_tensor, stored_tensors
from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.config_checks import is_number
from denoised.model.networks.low_rank import LoraLayer

SUFFIX = ".safetensors"
MAX_FILES = 1000  # of a folder
MAX_BYTES = 4 * 1024**3  # of a file
MAX_RANK = 1024
MAX_NAME = 100  # characters
MAX_METADATA = 1024**2  # characters
ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers stores peft's settings


@dataclass(frozen=True)
class LoraFile:
    """An adapter that fits a model.

    Attributes:
        name: what requests call it.
        path: of the file.
        digest: the first digits of the SHA-256 of the file.
        components: of the pipeline that it changes: "unet", "text_encoder", "text_encoder_2".
    """

    name: str
    path: Path
    digest: str
    components: frozenset[str]


def list_loras(folder: Path) -> list[Path]:
    """The adapter files of a folder, by name. Other files, pickles among them, are not looked at.

    Raises:
        CheckpointError: if the folder cannot be read, or holds too many adapters.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except OSError as error:
        raise CheckpointError(f"{folder}: is not a readable folder of adapters ({error.strerror})") from error
    if len(paths) > MAX_FILES:
        raise CheckpointError(f"{folder}: holds {len(paths)} adapters (allowed: {MAX_FILES})")
    return paths


def check_lora(path: Path, targets: Sequence[LoraTarget]) -> LoraFile:
    """Check that an adapter fits a model. Reads the names, shapes and alphas of its tensors, and hashes the file.

    Raises:
        CheckpointError: naming the file, the tensor and the cause.
    """
    if not path.stem.isprintable() or len(path.stem) > MAX_NAME or path.stem != path.stem.strip():
        raise CheckpointError(
            f"{abbreviate(str(path))}: cannot be named in a request (allowed: 1 … {MAX_NAME} printable characters)"
        )
    stored = _stored(path)
    small = {each.name: read_stored_tensor(each) for each in stored if each.shape in ((), (1,))}
    tensors = {each.name: small.get(each.name, torch.empty(each.shape, device="meta")) for each in stored}
    layers = _layers(path, tensors, targets)
    return LoraFile(path.stem, path, _digest(path), frozenset(layer.component for layer in layers))


def load_lora(file: LoraFile, targets: Sequence[LoraTarget]) -> list[LoraLayer]:
    """The layers of an adapter, in float32.

    Raises:
        CheckpointError: if the file has changed since it was checked, or holds NaN.
    """
    tensors = {each.name: read_stored_tensor(each).float() for each in _stored(file.path)}
    if _digest(file.path) != file.digest:
        raise CheckpointError(f"{file.path}: has changed since the worker started: restart the worker")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{file.path}: {abbreviate(name)} holds NaN or infinite values")
    return _layers(file.path, tensors, targets)


def _stored(path: Path) -> list[StoredTensor]:
    """The tensors of a file, not read yet."""
    size = check_regular(path)
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: has {size} bytes (allowed: {MAX_BYTES})")
    found = [tensor for shard in find_shards(path) for tensor in stored_tensors(shard)]
    for tensor in found:
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"{path}: {abbreviate(tensor.name)} is of type {tensor.dtype} (supported: {', '.join(FLOATS)})"
            )
    return found


def _layers(path: Path, tensors: Mapping[str, Tensor], targets: Sequence[LoraTarget]) -> list[LoraLayer]:
    try:
        settings = _settings(path)
        layers = read_lora(tensors, targets, _alphas(settings, targets))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    for layer in layers:
        if layer.rank > MAX_RANK:
            name = f"{layer.component}.{layer.module}"
            raise CheckpointError(f"{path}: the adapter of {name} has rank {layer.rank} (allowed: {MAX_RANK})")
    # Rank-stabilized: scale = alpha/√rank (Kalajdzievski 2023, arXiv:2312.03732).
    stabilized = {name.removesuffix(".use_rslora") for name, value in settings.items() if _is_on(name, value)}
    return [
        replace(each, alpha=each.alpha * math.sqrt(each.rank)) if each.component in stabilized else each
        for each in layers
    ]


def _is_on(name: str, value: object) -> bool:
    return name.endswith(".use_rslora") and value is True


def _settings(path: Path) -> dict[str, Any]:
    """peft's settings that diffusers stores in a file, under "component.key"; {} in files of others."""
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(ADAPTER_METADATA, "{}")
    if len(text) > MAX_METADATA or text.count("[") + text.count("{") > MAX_BRACKETS:
        raise CheckpointError(f"{ADAPTER_METADATA} is too large (allowed: {MAX_METADATA} characters)")
    try:
        settings = json.loads(text, object_pairs_hook=unique_members)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{ADAPTER_METADATA} is not valid JSON ({error})") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{ADAPTER_METADATA} is not a JSON object")
    for name, value in settings.items():
        if name.endswith(".use_dora") and value:
            raise CheckpointError(
                f"{ADAPTER_METADATA}: {abbreviate(name)} is on: this is a DoRA adapter; LoRA is supported"
            )
    return settings


def _alphas(settings: Mapping[str, Any], targets: Sequence[LoraTarget]) -> dict[str, float]:
    """alpha by "component.module", from peft's `lora_alpha` and `alpha_pattern`."""
    alphas: dict[str, float] = {}
    for target in targets:
        alpha = settings.get(f"{target.component}.lora_alpha")
        patterns = settings.get(f"{target.component}.alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{target.component}.alpha_pattern is not an object")
        if own := [ending for ending in _endings(target.module) if ending in patterns]:
            order = list(patterns) if len(own) > 1 else own
            alpha = patterns[max(own, key=order.index)]  # of several patterns, the last one in the file
        if alpha is None:
            continue
        if not is_number(alpha):
            raise CheckpointError(f"{target.component}.lora_alpha is {abbreviate(alpha)}, not a number")
        alphas[f"{target.component}.{target.module}"] = float(alpha)
    return alphas


def _endings(module: str) -> list[str]:
    """A module's name, and what follows each of its dots."""
    parts = module.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
