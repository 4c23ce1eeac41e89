"""What each level of a U-Net costs: its shape, its parameters and its multiplications, counted while it runs.

`level_costs` is for U-Nets of pixels; `model.networks.text_unet.text_level_costs` for those that take a text.

The network runs on the meta device, which computes shapes and no values, so counting takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

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

    def __init__(self, channels: Sequence[int], height: int, width: int) -> None:
        """channels: of each level, the highest resolution first."""
        self._channels = channels
        self.levels: list[LevelCost] = []
        self._current = self._level(height, width)

    def _level(self, height: int, width: int) -> LevelCost:
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
            self._current.multiplications += output.numel() * kernel
        elif isinstance(module, nn.Linear):
            self._current.multiplications += output.numel() * module.in_features
        elif isinstance(module, DotProductAttention):
            query, key = inputs[:2]  # (B, heads, N, d) and (B, heads, M, d): N·M·d products for q·k, and as many for v
            self._current.attention = True
            self._current.multiplications += 2 * query.numel() * key.shape[-2]
        self._current.parameters += sum(parameter.numel() for parameter in module.parameters(recurse=False))


def level_costs(unet: UNet, height: int, width: int) -> list[LevelCost]:
    """The levels from the highest resolution to the lowest, for one image of height × width pixels."""
    x = torch.empty(1, unet.config.in_channels, height, width, device="meta")
    return count_levels(unet, unet.config.block_out_channels, (x, torch.ones(1, device="meta"), _any_label(unet)))


def count_levels(
    network: nn.Module, channels: Sequence[int], inputs: tuple[Any, ...], named: Mapping[str, Tensor] | None = None
) -> list[LevelCost]:
    """The same for any U-Net, with the inputs of an evaluation of one image on the meta device.

    channels: of each level, the highest resolution first. inputs: the first is x, (1, C, H, W).
    """
    counter = _Counter(channels, *inputs[0].shape[-2:])
    leaves = [module for module in network.modules() if not next(module.children(), None)]
    hooks = [module.register_forward_hook(counter.count) for module in leaves]
    meta = {name: torch.empty_like(value, device="meta") for name, value in network.state_dict(keep_vars=True).items()}
    try:
        with torch.no_grad():
            functional_call(network, meta, inputs, dict(named or {}))
    finally:
        for hook in hooks:
            hook.remove()
    return counter.levels


def _any_label(unet: UNet) -> Tensor | None:
    """A label as the network takes it, without a value."""
    if unet.class_embedding is None:
        return None
    if unet.config.class_embed_type == "identity":
        return torch.empty(1, unet.time_embedding.linear_2.out_features, device="meta")
    return torch.empty(1, dtype=torch.int64, device="meta")
