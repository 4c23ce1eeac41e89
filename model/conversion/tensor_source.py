"""Where each tensor of a network comes from in a file with the original names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from denoised.model.conversion.single_file import SingleFile
from denoised.model.errors import CheckpointError

QUERY_KEY_VALUE = 3  # rows of a fused projection: queries, keys, values


@dataclass(frozen=True)
class TensorSource:
    """A tensor of a file, or a part of it.

    Attributes:
        name: in the file.
        part: 0, 1 or 2: the queries, keys or values of a fused projection; None: the whole tensor.
        transposed: the file has it transposed.
    """

    name: str
    part: int | None = None
    transposed: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is taken from a tensor of shape `stored`."""
        if self.part is not None:
            whole = stored and stored[0] % QUERY_KEY_VALUE == 0
            return (stored[0] // QUERY_KEY_VALUE, *stored[1:]) if whole else stored
        return stored[::-1] if self.transposed else stored

    def take(self, stored: Tensor) -> Tensor:
        """What is taken from the tensor."""
        if self.part is not None:
            return stored.chunk(QUERY_KEY_VALUE)[self.part]
        return stored.T if self.transposed else stored


Sources = Mapping[str, TensorSource]


def check_sources(file: SingleFile, sources: Sources, expected: Mapping[str, Tensor]) -> None:
    """Compare a network's tensors with those of the file.

    expected: the network's state dict, on the meta device. 1×1 convolutions may stand for linear layers.

    Raises:
        CheckpointError: for a tensor that is missing or has another shape.
    """
    for name, tensor in expected.items():
        source = sources[name]
        stored = file.shape(source.name)
        if _without_ones(source.shape(stored)) != _without_ones(tuple(tensor.shape)):
            fits = f"which does not fit {name!r} of shape {tuple(tensor.shape)}"
            raise CheckpointError(f"{file.path}: {source.name!r} has shape {stored}, {fits}")


def read_sources(file: SingleFile, sources: Sources, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network under its own names, in the file's precision."""
    stored = file.read(dict.fromkeys(sources[name].name for name in expected))
    return {
        name: sources[name].take(stored[sources[name].name]).reshape(tensor.shape).contiguous()
        for name, tensor in expected.items()
    }


def used_names(all_sources: Iterable[Sources]) -> set[str]:
    """The names in the file of everything that is taken."""
    return {source.name for sources in all_sources for source in sources.values()}


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the 1×1 of a convolution at its end."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
