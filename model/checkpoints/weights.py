"""Read a network's tensors from safetensors files: one file, several shards, or with old tensor names.

Only safetensors files are read, because a pickle can run code. Keys, shapes and types are compared with
those of the network before a tensor is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from denoised.model.checkpoints.legacy import modernize_tensor_name
from denoised.model.checkpoints.weight_files import find_shards
from denoised.model.errors import CheckpointError, abbreviate

FLOATS = ("F64", "F32", "F16", "BF16")
COUNTERS = ("I64",)  # a batch norm's num_batches_tracked, in the feature network of `model.evaluation`


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet.

    Attributes:
        path: the file.
        name: its name in the file.
        shape: its shape.
        dtype: its type, as safetensors names it.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        """Read the tensor."""
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.name)
            return tensor


Rename = Callable[[str], str | None]


def read_weights(
    source: Path, expected: Mapping[str, Tensor], rename: Rename = modernize_tensor_name
) -> dict[str, Tensor]:
    """The tensors that a network expects, converted to its types.

    source: a file, or the index of its shards; expected: the network's state dict; rename: from a name that the
    network does not have to one that it may have, or to None for a tensor that is not a weight.

    Raises:
        CheckpointError: for a missing or broken file, and for tensors that are missing, extra, or of another
            shape or type.
    """
    stored = [tensor for file in find_shards(source) for tensor in stored_tensors(file)]
    tensors = _by_current_names(stored, expected, rename)
    _compare(source, tensors, expected)
    return {key: _finite(tensors[key]).to(expected[key].dtype, copy=True) for key in expected}


def check_weights(source: Path, expected: Mapping[str, Tensor], rename: Rename = modernize_tensor_name) -> None:
    """Check the keys, shapes and types of the tensors that a network expects, without reading their values.

    The arguments and errors are those of `read_weights`.
    """
    stored = [tensor for file in find_shards(source) for tensor in stored_tensors(file)]
    _compare(source, _by_current_names(stored, expected, rename), expected)


def stored_tensors(path: Path) -> list[StoredTensor]:
    """The tensors of one file, not read yet.

    Raises:
        CheckpointError: if it is not a complete safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a dict
            return [StoredTensor(path, name, tuple(of.get_shape()), of.get_dtype()) for name, of in slices.items()]
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from error


def _by_current_names(
    stored: Sequence[StoredTensor], expected: Mapping[str, Tensor], rename: Rename
) -> dict[str, StoredTensor]:
    """The stored tensors by the network's names for them.

    A tensor that a file holds under its old and its new name counts once: diffusers' first releases wrote
    some of them twice.
    """
    tensors: dict[str, StoredTensor] = {}
    for tensor in stored:
        key = tensor.name if tensor.name in expected else rename(tensor.name)
        if key is None:
            continue
        other = tensors.setdefault(key, tensor)
        if other is not tensor and not torch.equal(read_stored_tensor(other), read_stored_tensor(tensor)):
            names = f"{abbreviate(other.name)} and {abbreviate(tensor.name)}"
            raise CheckpointError(f"{tensor.path}: holds {names}, two names of one tensor, with different values")
    return tensors


def read_stored_tensor(tensor: StoredTensor) -> Tensor:
    """Read a tensor.

    Raises:
        CheckpointError: if its file is broken, or no longer there.
    """
    try:
        return tensor.read()
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(f"{tensor.path}: not a complete safetensors file ({error})") from error


def _finite(tensor: StoredTensor) -> Tensor:
    """A tensor without NaN and ∞, with which every image would be NaN."""
    values = read_stored_tensor(tensor)
    if values.is_floating_point() and not torch.isfinite(values).all():
        raise CheckpointError(f"{tensor.path}: {abbreviate(tensor.name)} holds NaN or infinite values")
    return values


def _compare(source: Path, found: Mapping[str, StoredTensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse keys, shapes and types that differ from the network's."""
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"{source}: lacks {missing[0]!r} ({len(missing)} tensor(s) missing)")
    if extra := sorted(found.keys() - expected.keys()):
        name = found[extra[0]].name
        raise CheckpointError(
            f"{source}: holds {abbreviate(name)}, which the network does not have ({len(extra)} extra)"
        )
    for key in sorted(expected):
        tensor, shape = found[key], tuple(expected[key].shape)
        if tensor.shape != shape:
            has = f"{abbreviate(tensor.name)} has shape {tensor.shape}"
            raise CheckpointError(f"{tensor.path}: {has}, the config asks for {shape}")
        types = FLOATS if expected[key].is_floating_point() else COUNTERS
        if tensor.dtype not in types:
            raise CheckpointError(
                f"{tensor.path}: {abbreviate(tensor.name)} is of type {tensor.dtype} (supported: {', '.join(types)})"
            )
