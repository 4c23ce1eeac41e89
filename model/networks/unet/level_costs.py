"""What each level of a U-Net costs: its shape, its parameters and its multiplications, counted while it runs.

The network runs once on a small image, and the counts are scaled to the real one. Running it on the meta device
would import torch's compiler, which takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_layers import DotProductAttention


@dataclass
class LevelCost:
    """One resolution of the network.

    Attributes:
        height, width: Of its tensors.
        channels: Of the blocks there.
        attention: Whether its positions attend to each other.
        parameters: Of the layers whose output has this resolution.
        multiplications: Of these layers, for one image.
    """

    height: int
    width: int
    channels: int
    attention: bool = False
    parameters: int = 0
    multiplications: int = 0


class _Counter:
    """Adds up the layers by the resolution at which they run; the embeddings of t and label count at the highest."""

    def __init__(self, channels: Sequence[int], height: int, width: int, scale: int) -> None:
        """channels: of each level, the highest resolution first; scale: of the real sides to those of the run."""
        self._channels, self._scale = channels, scale
        self.levels: list[LevelCost] = []
        self._current = self._level(height, width)

    def _level(self, height: int, width: int) -> LevelCost:
        """Of tensors with these sides in the run."""
        height, width = height * self._scale, width * self._scale
        found = next((level for level in self.levels if (level.height, level.width) == (height, width)), None)
        if found is None:
            found = LevelCost(height, width, self._channels[min(len(self.levels), len(self._channels) - 1)])
            self.levels.append(found)
        return found

    def count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook of a module without children."""
        positions = self._scale**2  # real ones for each one in the run
        if isinstance(module, nn.Conv2d):
            self._current = self._level(output.shape[-2], output.shape[-1])
            kernel = module.weight[0].numel()  # C_in/groups · kh · kw
            self._current.multiplications += output.numel() * kernel * positions
        elif isinstance(module, nn.Linear):
            # (B, N, C) at each position, (B, C) for the embeddings
            self._current.multiplications += (
                output.numel() * module.in_features * (positions if output.dim() > 2 else 1)
            )
        elif isinstance(module, DotProductAttention):
            query = inputs[0]  # (B, heads, N, d): N·N·d products for q·k, and as many for the weighted sum of v
            self._current.attention = True
            self._current.multiplications += 2 * query.numel() * query.shape[-2] * positions**2
        self._current.parameters += sum(parameter.numel() for parameter in module.parameters(recurse=False))


def level_costs(unet: UNet, height: int, width: int) -> list[LevelCost]:
    """The levels from the highest resolution to the lowest, for one image of height × width pixels."""
    scale = _scale(unet.config.downscale, height, width)
    height, width = height // scale, width // scale
    counter = _Counter(unet.config.block_out_channels, height, width, scale)
    leaves = [module for module in unet.modules() if not next(module.children(), None)]
    hooks = [module.register_forward_hook(counter.count) for module in leaves]
    try:
        with torch.no_grad():
            unet(torch.zeros(1, unet.config.in_channels, height, width), torch.ones(1), _any_label(unet))
    finally:
        for hook in hooks:
            hook.remove()
    return counter.levels


def _scale(downscale: int, height: int, width: int) -> int:
    """By how much both sides can shrink, with two or more pixels left at the lowest resolution.

    A group norm refuses a single number.
    """
    lowest = math.gcd(height // downscale, width // downscale)
    return lowest // 2 if lowest % 2 == 0 else 1


def _any_label(unet: UNet) -> Tensor | None:
    """A label as the network takes it."""
    if unet.class_embedding is None:
        return None
    if unet.config.class_embed_type == "identity":
        return torch.zeros(1, unet.time_embedding.linear_2.out_features)
    return torch.zeros(1, dtype=torch.int64)
