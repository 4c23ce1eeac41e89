"""Evaluate ControlNets for the rows that have some, each with the bits that it has alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from denoised.model.backends.numerics import Precision
from denoised.model.backends.packed import can_pack, pack
from denoised.model.backends.precision import converted
from denoised.model.networks.text_unet.control_net import ControlNet, guess_mode_scales
from denoised.model.networks.text_unet.residuals import Residuals

ADDED = ("pooled", "size_ids")  # inputs of a U-Net that a ControlNet takes, too


class ControlBackend:
    """A ControlNet on a device; it may lose its weights to this.

    On a CPU in float32 with packed kernels, all rows together; otherwise each by itself.
    """

    def __init__(self, network: ControlNet, device: torch.device, precision: Precision = "float32") -> None:
        self.device = device
        self._packed = precision == "float32" and can_pack(device)
        self._network = pack(network) if self._packed else converted(network.to(device), precision)
        self._dtype = torch.float32 if self._packed else self._network.conv_in.weight.dtype

    @property
    def pools(self) -> bool:
        """Whether each residual is the mean over its pixels."""
        return self._network.control.global_pool_conditions

    @torch.inference_mode()
    def hint(self, picture: Tensor) -> Tensor:
        """The features (width, h, w) of a control picture (C, H, W) in 0 … 1."""
        return self._network.hint(picture[None].to(self.device, self._dtype))[0]

    @torch.inference_mode()
    def __call__(
        self, x: Tensor, t: Tensor, context: Tensor, hints: Sequence[Tensor], **added: Tensor
    ) -> list[list[Tensor]]:
        """The residuals of each row: one (C, h, w) for each skip tensor of the U-Net, and one for its middle.

        x: (B, C, h, w); t: (B,); context: (B, M, C); hints: B of `hint`; added: each (B, …).
        """
        x, context, hint = x.to(self._dtype), context.to(self._dtype), torch.stack(list(hints))
        slices = [slice(None)] if self._packed else [slice(row, row + 1) for row in range(len(x))]
        rows: list[list[Tensor]] = []
        for own in slices:
            inputs = {name: tensor[own] for name, tensor in added.items() if name in ADDED}
            maps = self._network(x[own], t[own], context[own], hint[own], **inputs)
            rows += [list(row) for row in zip(*(each.float().unbind() for each in maps), strict=True)]
        return rows


@dataclass(frozen=True, eq=False)
class RowControl:
    """A ControlNet of one row.

    Attributes:
        network: It.
        hint: The features of its control picture.
        scale: Of its residuals.
        guess_mode: Whether they are scaled by resolution, too (`guess_mode_scales`).
    """

    network: ControlBackend
    hint: Tensor
    scale: float
    guess_mode: bool = False

    def scaled(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Its residuals, times their scales."""
        scales = guess_mode_scales(len(maps)) if self.guess_mode else [1.0] * len(maps)
        return [each * (self.scale * scale) for each, scale in zip(maps, scales, strict=True)]


def evaluate_controls(
    controls: Sequence[Sequence[RowControl]], x: Tensor, t: Tensor, context: Tensor, added: Mapping[str, Tensor]
) -> Residuals | None:
    """The residuals of a batch, those of several ControlNets of a row added in their order; None without any.

    controls: of each of the B rows; the other arguments as for the U-Net, x with the latents alone.
    """
    sums: dict[int, list[Tensor]] = {}
    for position in range(max(map(len, controls), default=0)):
        rows = [row for row, own in enumerate(controls) if position < len(own)]
        for network in dict.fromkeys(controls[row][position].network for row in rows):
            own = [row for row in rows if controls[row][position].network is network]
            hints = [controls[row][position].hint for row in own]
            selected = {name: tensor[own] for name, tensor in added.items()}
            for row, maps in zip(own, network(x[own], t[own], context[own], hints, **selected), strict=True):
                scaled = controls[row][position].scaled(maps)
                before = sums.get(row)
                sums[row] = scaled if before is None else [a + b for a, b in zip(before, scaled, strict=True)]
    return Residuals.of(sums)
