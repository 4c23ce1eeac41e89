"""Evaluate a text-conditioned U-Net for rows with and without adapters, each with the bits that it has alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from denoised.model.backends.adapted_network import AdaptedNetwork, RowLoras
from denoised.model.backends.text_backend import TextBackend


class AdaptedBackend:
    """A backend that takes adapters.

    base: evaluates the rows without adapters.
    network: evaluates those with adapters; base itself, if it can be adapted and is packed.

    Where both are one packed network, all rows share one evaluation. Otherwise rows without adapters go through the
    base, whose bits are then what they are without adapters, and the others through the network: together if that is
    packed, else one at a time.
    """

    def __init__(self, base: TextBackend, adapted: TextBackend, network: AdaptedNetwork) -> None:
        self.base = base
        self._adapted = adapted
        self._network = network
        self._shared = adapted is base and network.packed

    @torch.inference_mode()
    def __call__(self, loras: Sequence[RowLoras], *inputs: Tensor, **added: Tensor) -> Tensor:
        """loras: of each row; inputs, added: those of the base, each with B rows. Returns (B, out_channels, H, W)."""
        loras = [self._network.relevant(own) for own in loras]
        with_loras = [row for row, own in enumerate(loras) if own]
        if not with_loras:
            return self.base(*inputs, **added)
        if self._shared:
            return self._evaluate(range(len(loras)), loras, inputs, added)
        # Only packed kernels give a row the same bits in a group as alone.
        groups = [with_loras] if self._network.packed else [[row] for row in with_loras]
        outputs = [self._evaluate(rows, loras, inputs, added) for rows in groups]
        plain = [row for row, own in enumerate(loras) if not own]
        if plain:
            outputs.append(self.base(*(each[plain] for each in inputs), **_rows(added, plain)))
        order = torch.tensor(with_loras + plain, device=inputs[0].device)
        # Row order[k] of the batch is row k of the outputs; argsort is the inverse permutation.
        return torch.cat(outputs)[order.argsort()]

    def begin(self, loras: Sequence[RowLoras], *inputs: Tensor, **added: Tensor) -> Callable[[], Tensor]:
        """Begin to evaluate, in the background if the base can and no row has adapters; the function waits for it."""
        if not any(self._network.relevant(own) for own in loras):
            return self.base.begin(*inputs, **added)
        output = self(loras, *inputs, **added)
        return lambda: output

    def _evaluate(
        self, rows: Sequence[int], loras: Sequence[RowLoras], inputs: Sequence[Tensor], added: dict[str, Tensor]
    ) -> Tensor:
        """The network with adapters, for some rows."""
        with self._network.rows([loras[row] for row in rows], inputs[0].device):
            if len(rows) == len(loras):
                return self._adapted(*inputs, **added)
            chosen = list(rows)
            return self._adapted(*(each[chosen] for each in inputs), **_rows(added, chosen))


def _rows(added: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in added.items()}
