"""A network's tensors, from safetensors files: whole, in several shards, or under their first names.

Only safetensors are read: no code comes from a file. Keys, shapes and types are compared with
those of the network before a tensor is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from denoised.model.checkpoints.folders import read_json
from denoised.model.checkpoints.legacy import modernize_tensor_name
from denoised.model.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
# Where there are no whole ones: the same in half precision.
VARIANTS = ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bf16.safetensors")
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
FLOATS = ("F64", "F32", "F16", "BF16")
COUNTERS = ("I64",)  # of batches, that a norm has seen


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: the file, its name there, its shape and type."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.name)
            return tensor


def read_weights(source: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a network expects, in its types, from a file or the index of its shards.

    Raises:
        CheckpointError: for a missing, broken or misleading file, and for tensors that are
            missing, too many, of another shape or no numbers.
    """
    files = _shards(source) if source.suffix == ".json" else [source]
    places = _by_todays_names([place for file in files for place in _contents(file)], expected)
    _compare(source, places, expected)
    return {key: _read(places[key]).to(expected[key].dtype, copy=True) for key in expected}


def find_weights(folder: Path) -> Path:
    """The file with the tensors, or the index of its shards.

    Raises:
        CheckpointError: where there is none; a pickle is named as what it is, not opened.
    """
    for name in (WEIGHTS, INDEX, *VARIANTS):
        if (folder / name).exists():
            return folder / name
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if pickles := [file for file in files if file.suffix in PICKLES]:
        raise CheckpointError(f"{pickles[0]}: is a pickle, which can run code: convert it to safetensors")
    raise CheckpointError(f"{folder / WEIGHTS}: missing")


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index}: weight_map is no list of tensors with their files")
    for name in names.values():
        if Path(name).name != name or Path(name).suffix != ".safetensors":
            raise CheckpointError(f"{index}: weight_map names {name!r}, which is no safetensors file beside it")
    return [index.parent / name for name in sorted(set(names.values()))]


def _contents(path: Path) -> list[Place]:
    if not path.exists():
        raise CheckpointError(f"{path}: missing")
    try:
        _check_start(path)
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            return [Place(path, name, tuple(of.get_shape()), of.get_dtype()) for name, of in slices.items()]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: no whole safetensors file ({error})") from error


def _check_start(path: Path) -> None:
    """Say what a file is that only has the name of one."""
    with path.open("rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the weights: run 'git lfs pull'")
    # A safetensors file has its length in eight bytes, then JSON.
    if start[8:9] != b"{" and start.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(f"{path}: is a pickle, which can run code: convert it to safetensors")


def _by_todays_names(stored: Sequence[Place], expected: Mapping[str, Tensor]) -> dict[str, Place]:
    """Places by the names that the network has for its tensors.

    A tensor that is there under its old and its new name counts once: first releases of diffusers
    wrote some twice.
    """
    places: dict[str, Place] = {}
    for place in stored:
        key = place.name if place.name in expected else modernize_tensor_name(place.name)
        other = places.setdefault(key, place)
        if other is not place and not torch.equal(_read(other), _read(place)):
            raise CheckpointError(f"{place.path}: holds {other.name!r} and {place.name!r}, one tensor, but they differ")
    return places


def _read(place: Place) -> Tensor:
    try:
        return place.read()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{place.path}: no whole safetensors file ({error})") from error


def _compare(source: Path, found: Mapping[str, Place], wanted: Mapping[str, Tensor]) -> None:
    if missing := sorted(wanted.keys() - found.keys()):
        raise CheckpointError(f"{source}: lacks {missing[0]!r} ({len(missing)} tensor(s) missing)")
    if extra := sorted(found.keys() - wanted.keys()):
        name = found[extra[0]].name
        raise CheckpointError(f"{source}: holds {name!r}, which the config has no place for ({len(extra)} extra)")
    for key in sorted(wanted):
        place, shape = found[key], tuple(wanted[key].shape)
        if place.shape != shape:
            raise CheckpointError(f"{place.path}: {place.name!r} has shape {place.shape}, the config asks for {shape}")
        types = FLOATS if wanted[key].is_floating_point() else COUNTERS
        if place.dtype not in types:
            raise CheckpointError(
                f"{place.path}: {place.name!r} is of type {place.dtype} (supported: {', '.join(types)})"
            )
