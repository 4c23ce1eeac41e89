"""The ControlNets of a folder: which there are, and their networks, checked before a weight is read.

Each is a folder in diffusers' format, with `config.json` and its weights as safetensors. Its name is the folder's.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from denoised.model.bounded_files import read_json
from denoised.model.checkpoints.digest import DIGITS
from denoised.model.checkpoints.text_to_image.text_checks import check_memory
from denoised.model.checkpoints.weight_files import find_shards, find_weights
from denoised.model.checkpoints.weights import check_weights, read_weights
from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.text_unet.control_net import ControlNet
from denoised.model.networks.text_unet.control_net_config import ControlNetConfig

CONFIG = "config.json"
CLASS = "ControlNetModel"
MAX_FOLDERS = 100
MAX_NAME = 100  # characters


@dataclass(frozen=True)
class ControlFolder:
    """A ControlNet that can be read.

    Attributes:
        name: What requests call it.
        path: Of the folder.
        digest: The first digits of a SHA-256 over its config and its files of weights.
        config: The settings of the network.
    """

    name: str
    path: Path
    digest: str
    config: ControlNetConfig


def list_control_nets(folder: Path) -> list[Path]:
    """The folders in a folder, by name, and files of weights that lie next to them.

    Raises:
        CheckpointError: if the folder cannot be read, is a ControlNet itself, or holds too many.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: is not a readable folder of ControlNets ({error.strerror})") from error
    if folder / CONFIG in entries:
        raise CheckpointError(f"{folder}: is a ControlNet itself (allowed: the folder that holds it)")
    found = [path for path in entries if path.suffix == ".safetensors" or (path.is_dir() and path.name[0] != ".")]
    if len(found) > MAX_FOLDERS:
        raise CheckpointError(f"{folder}: holds {len(found)} ControlNets (allowed: {MAX_FOLDERS})")
    return found


def check_control_net(path: Path) -> ControlFolder:
    """Check a ControlNet. Reads its config and the names and shapes of its tensors, and hashes its files.

    Raises:
        CheckpointError: naming the file, the key and the cause.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: is a single file (allowed: a folder in diffusers' format, with {CONFIG})")
    name = path.name
    if not name.isprintable() or len(name) > MAX_NAME or name != name.strip():
        raise CheckpointError(
            f"{abbreviate(str(path))}: cannot be named in a request (allowed: 1 … {MAX_NAME} printable characters)"
        )
    config = read_control_config(path)
    check_weights(find_weights(path), _on_meta(path, config).state_dict())
    return ControlFolder(name, path, _digest(path), config)


def load_control_net(folder: ControlFolder) -> ControlNet:
    """The network with its weights, in float32.

    Raises:
        CheckpointError: if the folder has changed since it was checked, or holds NaN.
    """
    network = _on_meta(folder.path, folder.config)
    check_memory(folder.path, [network])
    weights = read_weights(find_weights(folder.path), network.state_dict())
    if _digest(folder.path) != folder.digest:
        raise CheckpointError(f"{folder.path}: has changed since the worker started: restart the worker")
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def read_control_config(path: Path) -> ControlNetConfig:
    """The settings of a ControlNet's folder.

    Raises:
        CheckpointError: naming the file, the key and the cause.
    """
    raw = read_json(path / CONFIG)
    if raw.get("_class_name", CLASS) != CLASS:
        name = abbreviate(raw["_class_name"])
        raise CheckpointError(f"{path / CONFIG}: _class_name = {name} is not supported (supported: {CLASS!r})")
    try:
        return ControlNetConfig.from_dict(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{path / CONFIG}: {error}") from error


def _on_meta(path: Path, config: ControlNetConfig) -> ControlNet:
    """The network on the meta device: no weights are drawn."""
    try:
        with torch.device("meta"):
            return ControlNet(config)
    except CheckpointError as error:
        raise CheckpointError(f"{path / CONFIG}: {error}") from error


def _digest(path: Path) -> str:
    config = {key: value for key, value in read_json(path / CONFIG).items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for shard in find_shards(find_weights(path)):
        with shard.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:DIGITS]
