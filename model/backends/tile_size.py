"""How many images a recorded graph evaluates at once: a fixed rule, so that all workers of a fleet agree.

A *tile* is T images that are evaluated together. T decides the last bits of an image, so it may depend on the network
and the size of its images alone. A *replay* evaluates up to K tiles next to each other; K decides no bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.networks.unet.unet import UNet

# A lone image pays for a tile. On an H100 the launches of a graph take 1.5 ms, and the bundled network reaches 20
# TFLOP/s in float32 and 79 in bfloat16 (docs/performance-cuda.md), so that 0.1 TFLOP take 5 and 1.3 ms.
TILE_ROWS = 16
TILE_FLOP = 1e11
TILE_BYTES = 2**29  # of the outputs of all layers, in float32
REPLAY_TILES = 4  # in a replay; its limits of FLOP and bytes are this many times those of a tile


@dataclass(frozen=True)
class RowCost:
    """What an evaluation costs for one image.

    Attributes:
        flop: Of convolutions and linear layers; the products within attention are left out.
        map_bytes: Of the outputs of these layers, as float32. They do not all exist at once, so it is an upper bound.
    """

    flop: float
    map_bytes: float


@dataclass(frozen=True)
class Tiling:
    """Attributes:
    rows: T, the images of a tile.
    tiles: K, the most tiles of a replay.
    """

    rows: int
    tiles: int

    @property
    def replay_rows(self) -> int:
        """The most images of a replay."""
        return self.rows * self.tiles


def tiling(cost: RowCost) -> Tiling:
    """The largest powers of two within the limits, and at least 1 image and 1 tile."""
    rows = TILE_ROWS
    while rows > 1 and not _fits(cost, rows, limits=1):
        rows //= 2
    tiles = REPLAY_TILES
    while tiles > 1 and not _fits(cost, rows * tiles, limits=REPLAY_TILES):
        tiles //= 2
    return Tiling(rows, tiles)


def _fits(cost: RowCost, rows: int, limits: int) -> bool:
    return rows * cost.flop <= limits * TILE_FLOP and rows * cost.map_bytes <= limits * TILE_BYTES


def row_cost(unet: UNet, shape: tuple[int, int, int]) -> RowCost:
    """The cost of an image (C, H, W), counted from the shapes of the layers and their outputs.

    It depends on neither the device, the precision nor the version of PyTorch.
    """
    with torch.device("meta"):  # shapes without numbers
        copy = UNet(unet.config).eval()  # without what a subclass does around the layers
        inputs = {"x": torch.empty(1, *shape), "t": torch.ones(1)}
        if copy.class_embedding is not None:
            inputs["label"] = torch.zeros(1, dtype=torch.long)
    return _count(copy, inputs)


def text_row_cost(config: TextUNetConfig, inputs: Mapping[str, Tensor]) -> RowCost:
    """The cost of an evaluation of a `TextUNet`, as `row_cost` counts it. inputs: of any number of rows, by name."""
    with torch.device("meta"):
        network = TextUNet(config).eval()
    return _count(network, {name: tensor[:1].to("meta", torch.float32) for name, tensor in inputs.items()})


@torch.no_grad()
def _count(network: nn.Module, inputs: Mapping[str, Tensor]) -> RowCost:
    """The cost of a network on the meta device for one row."""
    flop, map_bytes = 0.0, 0.0

    def count(layer: nn.Module, given: Any, output: Tensor) -> None:
        nonlocal flop, map_bytes
        assert isinstance(layer.weight, Tensor)
        places = output.numel() / layer.weight.shape[0]  # pixels or tokens
        flop += 2 * layer.weight.numel() * places
        map_bytes += 4 * output.numel()

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    network(**inputs)
    return RowCost(flop, map_bytes)
