"""Evaluating a network in overlapping tiles, so that its memory does not grow with the image.

The tiles overlap by a quarter and are blended linearly there, as in diffusers' `AutoencoderKL`. The norms see one tile
each, so the result differs slightly from that of the whole image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

OVERLAP = 0.25  # the part of a tile that its neighbour covers too


def evaluate_in_tiles(network: Callable[[Tensor], Tensor], x: Tensor, tile: int, out_tile: int) -> Tensor:
    """The network's output (B, C', H·out_tile/tile, W·out_tile/tile), evaluated tile by tile.

    network: changes height and width by the factor out_tile/tile.
    x: (B, C, H, W).
    tile, out_tile: height and width of a tile in the input and in the output.
    """
    step, blend = int(tile * (1 - OVERLAP)), int(out_tile * OVERLAP)
    kept = out_tile - blend  # rows and columns that the next tile does not cover
    rows: list[Tensor] = []
    above: list[Tensor] = []
    for top in range(0, x.shape[2], step):
        tiles: list[Tensor] = []
        for column, left in enumerate(range(0, x.shape[3], step)):
            # A copy: blending writes to it, and the network may return its input.
            current = network(x[:, :, top : top + tile, left : left + tile]).clone()
            if above:
                # First from above, then from the left, as in diffusers: in the corner both transitions are multiplied.
                _blend(above[column], current, blend, dim=2)
            if tiles:
                _blend(tiles[-1], current, blend, dim=3)
            tiles.append(current)
        # Without the part that the next tile covers: it is blended into that tile.
        rows.append(torch.cat([each[:, :, :kept, :kept] for each in tiles], dim=3))
        above = tiles
    return torch.cat(rows, dim=2)


def _blend(before: Tensor, after: Tensor, extent: int, dim: int) -> None:
    """Replace the start of `after` by a linear transition from the end of `before`, in place."""
    extent = min(before.shape[dim], after.shape[dim], extent)
    # 0, 1/extent, …, (extent − 1)/extent along `dim`.
    weight = torch.arange(extent, dtype=after.dtype, device=after.device) / extent
    weight = weight.view([-1 if axis == dim else 1 for axis in range(after.dim())])
    start = after.narrow(dim, 0, extent)
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    start.copy_(end * (1 - weight) + start * weight)
