"""Evaluate a text-conditioned U-Net for rows with and without adapters or ControlNets, each with the bits that it has
alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from denoised.model.backends.adapted_network import AdaptedNetwork, RowLoras
from denoised.model.backends.text_backend import ModuleBackend, TextBackend
from denoised.model.networks.text_unet.residuals import Residuals


class AdaptedBackend:
    """A backend that takes adapters, and residuals of ControlNets.

    base: evaluates the rows with neither.
    adapted: evaluates those with some; base itself, if that takes them and is packed.
    network: what `adapted` evaluates.

    Where both are one packed network, all rows share one evaluation. Otherwise plain rows go through the base, whose
    bits are then what they are without adapters, and the others through the network: together if that is packed, else
    one at a time.
    """

    def __init__(self, base: TextBackend, adapted: ModuleBackend, network: AdaptedNetwork) -> None:
        self.base = base
        self._adapted = adapted
        self._network = network
        self._shared = network.packed and base is adapted

    @torch.inference_mode()
    def __call__(
        self, loras: Sequence[RowLoras], *inputs: Tensor, residuals: Residuals | None = None, **added: Tensor
    ) -> Tensor:
        """loras: of each row; inputs, added: those of the base, each with B rows. Returns (B, out_channels, H, W)."""
        loras = [self._network.relevant(own) for own in loras]
        controlled = set(residuals.rows) if residuals is not None else set()
        changed = [row for row, own in enumerate(loras) if own or row in controlled]
        if not changed:
            return self.base(*inputs, **added)
        if self._shared:
            return self._evaluate(range(len(loras)), loras, inputs, residuals, added)
        # Only packed kernels give a row the same bits in a group as alone.
        groups = [changed] if self._network.packed else [[row] for row in changed]
        outputs = [self._evaluate(rows, loras, inputs, residuals, added) for rows in groups]
        plain = sorted(set(range(len(loras))) - set(changed))
        if plain:
            outputs.append(self.base(*(each[plain] for each in inputs), **_rows(added, plain)))
        order = torch.tensor(changed + plain, device=inputs[0].device)
        # Row order[k] of the batch is row k of the outputs; argsort is the inverse permutation.
        return torch.cat(outputs)[order.argsort()]

    def begin(
        self, loras: Sequence[RowLoras], *inputs: Tensor, residuals: Residuals | None = None, **added: Tensor
    ) -> Callable[[], Tensor]:
        """Begin to evaluate, in the background if the base can and every row is plain; the function waits for it."""
        if residuals is None and not any(self._network.relevant(own) for own in loras):
            return self.base.begin(*inputs, **added)
        output = self(loras, *inputs, residuals=residuals, **added)
        return lambda: output

    def _evaluate(
        self,
        rows: Sequence[int],
        loras: Sequence[RowLoras],
        inputs: Sequence[Tensor],
        residuals: Residuals | None,
        added: dict[str, Tensor],
    ) -> Tensor:
        """The network with adapters and residuals, for some rows."""
        with self._network.rows([loras[row] for row in rows], inputs[0].device):
            if len(rows) == len(loras):
                return self._adapted.controlled(residuals, *inputs, **added)
            chosen = list(rows)
            own = residuals.select(chosen) if residuals is not None else None
            return self._adapted.controlled(own, *(each[chosen] for each in inputs), **_rows(added, chosen))


def _rows(added: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in added.items()}
