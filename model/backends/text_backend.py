"""How a text-conditioned U-Net is evaluated: the protocol of its backends, and its forward pass as two of them.

The kernels of `model.backends.packed` evaluate the whole batch at once. PyTorch's own kernels depend on the shape of
the whole batch, so they evaluate one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from denoised.model.networks.text_unet.residuals import Residuals
from denoised.model.networks.text_unet.text_unet import TextUNet

COMPARED_ROWS = 3
COMPARED_TOKENS = 77


class TextBackend(Protocol):
    """The function of one `TextUNet`. Not for two threads at a time."""

    @property
    def min_pipelined_images(self) -> int | None:
        """The fewest images for which two evaluations begun by `begin` are faster than one; None if never."""
        ...

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Tensor:
        """x: (B, C, H, W); t: (B,); context: (B, M, cross_attention_dim). Returns (B, out_channels, H, W).

        added: `TextUNetConfig.added_inputs`, as `TextUNet.forward` takes them.
        """
        ...

    def begin(self, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Callable[[], Tensor]:
        """Begin an evaluation, and return a function that waits for its output."""
        ...


class WholeBatchTextUNet:
    """A network's own forward pass for the whole batch: for a network whose kernels do not depend on the batch."""

    min_pipelined_images: int | None = None

    def __init__(self, unet: TextUNet) -> None:
        self._unet = unet

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Tensor:
        return self.controlled(None, x, t, context, **added)

    def controlled(self, residuals: Residuals | None, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Tensor:
        """The network with residuals of ControlNets."""
        output: Tensor = self._unet(x, t, context, residuals=residuals, **added)
        return output

    def begin(self, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Callable[[], Tensor]:
        """Evaluate at once: nothing runs in the background."""
        output = self(x, t, context, **added)
        return lambda: output


class PerImageTextUNet:
    """The network's own forward pass, for each image by itself. Inputs are converted to the type of its layers."""

    min_pipelined_images: int | None = None

    def __init__(self, unet: TextUNet) -> None:
        self._unet = unet
        self._dtype = unet.conv_in.weight.dtype

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Tensor:
        return self.controlled(None, x, t, context, **added)

    def controlled(self, residuals: Residuals | None, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Tensor:
        """The network with residuals of ControlNets."""
        x, context = x.to(self._dtype), context.to(self._dtype)
        outputs = []
        for row in range(len(x)):
            own, its = slice(row, row + 1), residuals.select([row]) if residuals is not None else None
            outputs.append(self._unet(x[own], t[own], context[own], residuals=its, **select_rows(added, own)))
        return torch.cat(outputs).float()

    def begin(self, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Callable[[], Tensor]:
        """Evaluate at once: nothing runs in the background."""
        output = self(x, t, context, **added)
        return lambda: output


ModuleBackend = WholeBatchTextUNet | PerImageTextUNet
"""A backend that is a module's forward pass: it takes adapters and residuals."""


def select_rows(added: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """Some rows of each input."""
    return {name: tensor[rows] for name, tensor in added.items()}
