"""How a network is evaluated: the protocol of a backend, and the network's own forward pass as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from denoised.model.networks.unet.unet import UNet


class Backend(Protocol):
    """The function of one `UNet`, evaluated in some way. Not for two threads at a time."""

    @property
    def min_pipelined_images(self) -> int | None:
        """The fewest images for which two evaluations begun by `begin` are faster than one; None if never."""
        ...

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """As `UNet.forward`: x (B, C, H, W), t and label (B,)."""
        ...

    def begin(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Callable[[], Tensor]:
        """Begin an evaluation, and return a function that waits for its output."""
        ...


class EagerBackend:
    """The network's own forward pass, as PyTorch runs it, for the whole batch or for each image by itself.

    PyTorch's kernels depend on the size of the batch. One image at a time, its bits do not.
    """

    min_pipelined_images: int | None = None

    def __init__(self, unet: UNet, *, per_image: bool = False) -> None:
        self._unet = unet
        self._per_image = per_image

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        if self._per_image:
            rows = [slice(row, row + 1) for row in range(len(x))]
            return torch.cat([self._unet(x[row], t[row], None if label is None else label[row]) for row in rows])
        output: Tensor = self._unet(x, t, label)
        return output

    def begin(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Callable[[], Tensor]:
        """Evaluate at once: nothing runs in the background."""
        output = self(x, t, label)
        return lambda: output
