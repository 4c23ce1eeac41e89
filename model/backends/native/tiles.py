"""Which tile of a convolution is held in registers, and the layout of weights and channels that the kernels need."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LANES = 16  # floats in a vector, as in simd.h
MAX_PIXELS, MAX_VECTORS = 14, 5  # as in convolutions.c
MAX_CHUNK = 4096  # channels of a norm's unit of work; they are on a thread's stack


@dataclass(frozen=True, order=True)
class Tile:
    """The outputs of a convolution that are held in registers: pixels of a row by vectors of output channels.

    Attributes:
        size, stride: Of the convolution, which is square.
        channels: Of its input.
        pixels: Of an output row.
        vectors: Of LANES output channels each.
    """

    size: int
    stride: int
    channels: int
    pixels: int
    vectors: int

    @property
    def name(self) -> str:
        """The name of its function."""
        return f"denoised_convolve_{self.size}_{self.stride}_{self.channels}_{self.pixels}_{self.vectors}"

    @property
    def is_pointwise(self) -> bool:
        """Whether it reads one pixel for each that it writes, so that the shape of the map does not matter."""
        return self.size == 1 and self.stride == 1

    @property
    def source(self) -> str:
        """Its entry in TILES of convolutions.c."""
        return f"TILE({self.size}, {self.stride}, {self.channels}, {self.pixels}, {self.vectors})"


def tile_for(size: int, stride: int, channels: int, out_channels: int, out_width: int) -> Tile:
    """The tile that computes a convolution in the fewest cycles; out_channels is a multiple of LANES."""
    shapes = [
        (pixels, vectors)
        for pixels in range(1, min(MAX_PIXELS, out_width) + 1)
        for vectors in range(1, MAX_VECTORS + 1)
        if pixels * vectors <= _sum_registers() and out_channels // LANES % vectors == 0
    ]

    def cycles(shape: tuple[int, int]) -> tuple[float, int]:
        """Cycles for each weight of a row: half of one per vector, and two for everything else (measured). Of two
        equal shapes, the one that reads fewer weights counts."""
        pixels, vectors = shape
        # Of one output row. The last tile of a row overlaps the one before it, so a rest costs as much as a whole tile.
        tiles = math.ceil(out_width / pixels) * (out_channels // LANES // vectors)
        # Two multiply-adds of a vector start in each cycle, hence a half. In small tiles a sum waits for itself: 3.5.
        return tiles * max(pixels * vectors / 2 + 2, 3.5), vectors

    pixels, vectors = min(shapes, key=cycles)
    return Tile(size, stride, channels, pixels, vectors)


def pointwise_rows(pixels: int, tile: Tile) -> int:
    """Into how many equal rows the pixels of a map are split for a convolution of size 1.

    More rows keep more threads busy; they must not cost more than a few tiles whose pixels were computed already.
    """
    choices = [rows for rows in (1, 2, 4) if pixels % rows == 0 and pixels // rows >= tile.pixels]
    counts = {rows: rows * math.ceil(pixels / rows / tile.pixels) for rows in choices}
    return max(rows for rows, tiles in counts.items() if tiles <= 1.06 * counts[1])


def _sum_registers() -> int:
    """How many vectors of LANES sums may take: AVX-512 has 32 registers of one vector, AVX2 16 of half a vector."""
    return 28 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 6


def packed_weight(weight: Tensor, tile: Tile) -> Tensor:
    """(O, C, K, K) → (O/(vectors·LANES), K, K, C, vectors·LANES), in the order in which a tile reads it."""
    bands = weight.unflatten(0, (-1, tile.vectors * LANES))  # (bands, vectors·LANES, C, K, K)
    return bands.permute(0, 3, 4, 2, 1).contiguous()


def norm_chunk(channels: int, groups: int) -> int | None:
    """The channels of a norm's unit of work: whole groups and whole vectors. None if there is no such unit."""
    if channels % LANES:
        return None
    # The smallest unit that ends where a group ends and where a vector ends.
    fewest = math.lcm(channels // groups, LANES)
    size = fewest if channels % fewest == 0 else channels
    return size if size <= MAX_CHUNK else None
