"""Low-rank adapters (LoRA) next to the layers of a network, for each row of a batch its own.

A layer y = W·x gets y_i += w·(alpha/rank)·B·A·x_i for those rows i whose request names the adapter (Hu et al. 2021,
arXiv:2106.09685, equation 3); the other rows keep their bits. The weights of the network are never changed, so that
rows with different adapters, and rows with none, share one evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from denoised.model.backends.packed import pack
from denoised.model.networks.low_rank import LoraLayer, LowRankBranch

RowLoras = Mapping[str, float]
"""The adapters of one row: weights by name."""

MAX_ATTACHED = 16  # adapters next to one network; the one that was used longest ago makes room


@dataclass(frozen=True)
class _ActiveLora:
    """The rows of the current evaluation that use an adapter.

    Attributes:
        rows: (n,) their indices; None for all rows.
        weights: (n,) of the requests.
    """

    rows: Tensor | None
    weights: Tensor

    def add(self, branch: LowRankBranch, x: Tensor, y: Tensor) -> None:
        """Add to a layer's output y (B, …), in place: its layout in memory is that of a batch without adapters."""
        # A product and then a sum: a fused operation would round differently where a vector ends.
        if self.rows is None:
            y.add_(self._weighted(branch(x)))
        else:
            # The other rows are neither read nor written.
            y.index_copy_(0, self.rows, y[self.rows] + self._weighted(branch(x[self.rows])))

    def _weighted(self, added: Tensor) -> Tensor:
        # (n,) → (n, 1, …), one weight for each row.
        return self.weights.view(-1, *[1] * (added.dim() - 1)).to(added.dtype) * added


class AdaptedNetwork:
    """A network whose layers take adapters. Not for two threads at a time.

    network: its layers are found by the names that `shapes` has for them, also where `pack` has replaced them.
    geometry: the same network with PyTorch's own layers, or on the meta device.
    load: the layers of an adapter by its name; called when the adapter is used first.
    names: of the adapters that change the network.
    packed: whether the network is packed (`model.backends.packed`), so that its branches have to be, too.

    The products of a packed network have the same bits in a batch of any size, as its layers do. Any other network must
    be evaluated for one row at a time.
    """

    def __init__(
        self,
        network: nn.Module,
        geometry: nn.Module,
        load: Callable[[str], Sequence[LoraLayer]],
        names: Collection[str],
        *,
        packed: bool,
    ) -> None:
        self.packed = packed
        self._network = network
        self._geometry = dict(geometry.named_modules())
        self._load = load
        self._names = frozenset(names)
        self._branches: dict[str, dict[str, LowRankBranch]] = {}  # by adapter, the one used last at the end
        self._active: dict[str, _ActiveLora] = {}
        self._hooks: dict[str, Any] = {}  # by module

    def relevant(self, loras: RowLoras) -> RowLoras:
        """The adapters of a row that change this network."""
        return {name: weight for name, weight in loras.items() if name in self._names}

    @contextmanager
    def rows(self, loras: Sequence[RowLoras], device: torch.device) -> Iterator[None]:
        """Within: each evaluation has these rows, with these adapters, all of them relevant.

        Raises:
            CheckpointError: if an adapter cannot be read any more.
        """
        names = sorted({name for row in loras for name in row})
        for name in names:
            self._attach(name)
        self._detach_unused(names)
        self._active = {name: _active(name, loras, device) for name in names}
        try:
            yield
        finally:
            self._active = {}

    def _attach(self, name: str) -> None:
        # Taken out and put back at the end: the order of the dict is that of the last use.
        branches = self._branches.pop(name, None)
        if branches is None:
            branches = {layer.module: self._branch(layer) for layer in self._load(name)}
            for module in branches:
                if module not in self._hooks:
                    layer = self._network.get_submodule(module)
                    self._hooks[module] = layer.register_forward_hook(self._adder(module))
        self._branches[name] = branches

    def _branch(self, layer: LoraLayer) -> LowRankBranch:
        base = self._geometry[layer.module]
        assert isinstance(base, nn.Linear | nn.Conv2d)
        branch = LowRankBranch(layer, base)
        if self.packed:
            return pack(branch)
        own = self._network.get_submodule(layer.module).weight
        assert isinstance(own, Tensor)
        return branch.to(own.device, own.dtype)

    def _detach_unused(self, used: Sequence[str]) -> None:
        """Drop the adapters beyond MAX_ATTACHED, and the hooks of the layers that none is next to any more."""
        for name in [name for name in self._branches if name not in used]:
            if len(self._branches) <= MAX_ATTACHED:
                return
            del self._branches[name]
        needed = {module for branches in self._branches.values() for module in branches}
        for module in self._hooks.keys() - needed:
            self._hooks.pop(module).remove()

    def _adder(self, module: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """The forward hook of a layer: adds the branches of the rows' adapters to its output, in order of name."""

        def add(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # Sums of floats depend on their order, so it is that of the names, whatever the request's.
            for name, active in self._active.items():
                if (branch := self._branches[name].get(module)) is not None:
                    active.add(branch, inputs[0], output)

        return add


def _active(name: str, loras: Sequence[RowLoras], device: torch.device) -> _ActiveLora:
    rows = [row for row, own in enumerate(loras) if name in own]
    weights = torch.tensor([loras[row][name] for row in rows], dtype=torch.float32, device=device)
    return _ActiveLora(None if len(rows) == len(loras) else torch.tensor(rows, device=device), weights)
