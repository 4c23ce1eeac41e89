"""The low-rank change of a weight: scale·B·A with A (rank, in) and B (out, rank), evaluated next to the layer.

Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class LoraLayer:
    """The adapter of one weight.

    Attributes:
        component: "unet", "text_encoder" or "text_encoder_2".
        module: the name of what it changes in the component's network.
        down: A (rank, in), or (rank, in, height, width) for a convolution.
        up: B (out, rank), or (out, rank, 1, 1).
        alpha: the adapter is multiplied by alpha/rank.
    """

    component: str
    module: str
    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The inner dimension of B·A."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The factor alpha/rank of B·A."""
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """scale·B·A in float32, of the weight's shape."""
        # W' = W + (alpha/rank)·B·A (Hu et al. 2021, equation 3); in float32, because files often hold float16.
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)  # (out, in·height·width)
        return (self.scale * product).view(self.up.shape[0], *self.down.shape[1:])


class LowRankBranch(nn.Module):
    """scale·B·A·x next to one layer, where A has the geometry of the layer, and B is 1×1."""

    def __init__(self, layer: LoraLayer, base: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.scale = layer.scale
        out, rank = layer.up.shape[:2]
        self.down: nn.Module
        self.up: nn.Module
        # On the meta device: the weights are assigned below, so none are drawn.
        new: dict[str, Any] = {"bias": False, "device": "meta"}
        if isinstance(base, nn.Conv2d):
            geometry: dict[str, Any] = {"stride": base.stride, "padding": base.padding}
            self.down = nn.Conv2d(base.in_channels, rank, base.kernel_size, **geometry, **new)  # type: ignore[arg-type]
            self.up = nn.Conv2d(rank, out, 1, **new)
        else:
            self.down = nn.Linear(base.in_features, rank, **new)
            self.up = nn.Linear(rank, out, **new)
        self.down.weight, self.up.weight = (nn.Parameter(half, requires_grad=False) for half in (layer.down, layer.up))

    def forward(self, x: Tensor) -> Tensor:
        """x: some rows of the layer's input. Returns the same rows of what is added, without the request's weight."""
        return self.scale * self.up(self.down(x.contiguous()))
