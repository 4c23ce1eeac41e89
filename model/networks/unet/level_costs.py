"""What each level of a U-Net costs: its shape, its parameters and its multiplications, counted while it runs.

`level_costs` is for U-Nets of pixels; `model.networks.text_unet.text_level_costs` for those that take a text.

The network runs once on a small image, with layers that return zeros, and the counts are scaled to the real image. So
counting takes milliseconds and no weights. On the meta device, torch would import its compiler, which takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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
        """The level of tensors with these sides in the run."""
        height, width = height * self._scale, width * self._scale
        found = next((level for level in self.levels if (level.height, level.width) == (height, width)), None)
        if found is None:
            found = LevelCost(height, width, self._channels[min(len(self.levels), len(self._channels) - 1)])
            self.levels.append(found)
        return found

    def count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook of a module without children."""
        if isinstance(module, nn.Conv2d):
            self._current = self._level(output.shape[-2], output.shape[-1])
            kernel = module.weight[0].numel()  # C_in/groups · kh · kw
            self._current.multiplications += output.numel() * kernel * self._scale**2
        elif isinstance(module, nn.Linear):
            rows = output.numel() // module.out_features
            self._current.multiplications += self._real(rows) * module.out_features * module.in_features
        elif isinstance(module, DotProductAttention):
            query, key = inputs[:2]  # (B, heads, N, d) and (B, heads, M, d): N·M·d products for q·k, and as many for v
            self._current.attention = True
            queries = query.numel() // query.shape[-2] * self._real(query.shape[-2])
            self._current.multiplications += 2 * queries * self._real(key.shape[-2])
        self._current.parameters += sum(parameter.numel() for parameter in module.parameters(recurse=False))

    def _real(self, rows: int) -> int:
        """How many rows of a matrix there are for the real image: one for each position of the level, or those of
        embeddings and tokens, which every image has."""
        positions = self._current.height * self._current.width
        return positions if rows * self._scale**2 == positions else rows


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    assert not isinstance(conv.padding, str)
    windows = zip(x.shape[-2:], conv.kernel_size, conv.stride, conv.dilation, conv.padding, strict=True)
    sides = [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, dilation, padding in windows]
    return x.new_zeros(x.shape[0], conv.out_channels, *sides)


def _projected(linear: nn.Linear, x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], linear.out_features)


def _unchanged(layer: nn.Module, x: Tensor) -> Tensor:
    return x


# The output of layers, in shape alone. Dropout in training would draw from the generator.
STAND_INS: dict[type, Callable[..., Tensor]] = {
    nn.Conv2d: _convolved,
    nn.Linear: _projected,
    nn.GroupNorm: _unchanged,
    nn.LayerNorm: _unchanged,
    nn.Dropout: _unchanged,
}


def level_costs(unet: UNet, height: int, width: int) -> list[LevelCost]:
    """The levels from the highest resolution to the lowest, for one image of height × width pixels."""
    inputs = (torch.zeros(1, unet.config.in_channels, height, width), torch.ones(1), _any_label(unet))
    return count_levels(unet, unet.config.block_out_channels, unet.config.downscale, inputs)


def count_levels(
    network: nn.Module,
    channels: Sequence[int],
    downscale: int,
    inputs: tuple[Any, ...],
    named: Mapping[str, Tensor] | None = None,
) -> list[LevelCost]:
    """The same for any U-Net, with the inputs of an evaluation of one image. The weights may be on any device.

    channels: of each level, the highest resolution first. downscale: what both sides of x are multiples of. inputs: the
    first is x, (1, C, H, W).
    """
    x, *others = inputs
    scale = _scale(downscale, *x.shape[-2:])
    height, width = x.shape[-2] // scale, x.shape[-1] // scale
    counter = _Counter(channels, height, width, scale)
    leaves = [module for module in network.modules() if not next(module.children(), None)]
    hooks = [module.register_forward_hook(counter.count) for module in leaves]
    replaced = [module for module in leaves if type(module) in STAND_INS]
    for module in replaced:
        module.__dict__["forward"] = partial(STAND_INS[type(module)], module)
    try:
        with torch.no_grad():
            network(x[..., :height, :width], *others, **(named or {}))
    finally:
        for module in replaced:
            del module.__dict__["forward"]
        for hook in hooks:
            hook.remove()
    return counter.levels


def _scale(downscale: int, height: int, width: int) -> int:
    """By how much both sides can shrink.

    Above 1, all levels keep even sides, so that none has as many positions as a prompt has tokens, an odd number.
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
