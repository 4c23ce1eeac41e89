"""The C functions of this folder, bound with ctypes, for the convolutions that one network needs."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoised.model.backends.native.compiler import compiled
from denoised.model.backends.native.kernel_abi import (
    NUMBER,
    POINTER,
    REAL,
    Argument,
    argument_list,
    check_struct_sizes,
)
from denoised.model.backends.native.thread_pool import EvaluationRunner
from denoised.model.backends.native.tiles import LANES, Tile, norm_chunk, pointwise_rows, tile_for

QUERIES = 7  # as in attention.c
MAX_TOKENS = 1024  # of `attend`; beyond them PyTorch's attention is faster
SIGNATURES: dict[str, list[str]] = {  # the kinds of the arguments after the batch
    "denoised_norm": [POINTER] * 4 + [NUMBER] + [POINTER] * 3 + [NUMBER] * 6 + [REAL, NUMBER],
    "denoised_pad": [POINTER] * 2 + [NUMBER] * 7,
    "denoised_join": [POINTER] * 3 + [NUMBER] * 3,
    "denoised_interleave": [POINTER] * 2 + [NUMBER] * 3,
    "denoised_attend": [POINTER] * 3 + [NUMBER] * 3 + [REAL],
    "denoised_attend_text": [POINTER] * 5 + [NUMBER] * 5 + [REAL],
    "denoised_layer_norm": [POINTER] * 4 + [NUMBER] * 2 + [REAL],
    "denoised_gated_gelu": [POINTER] * 2 + [NUMBER] * 2,
}
CONVOLUTION = [POINTER] * 5 + [NUMBER] * 5


@dataclass(frozen=True)
class KernelCall:
    """A call of a kernel: the arguments after the batch, and their kinds."""

    kernel: Callable[..., None]
    kinds: Sequence[str]
    arguments: Sequence[Any]

    @property
    def pointers(self) -> list[int]:
        """The arguments that are pointers, without NULL."""
        typed = zip(self.kinds, self.arguments, strict=True)
        return [value for kind, value in typed if kind == POINTER and value is not None]


class Kernels:
    """The kernels of one network. Request its tiles first, then compile, then call.

    Tensors are (B, C, H, W) float32 on the CPU, with their channels last in memory.

    Attributes:
        runner: The functions of thread_pool.c; set by `compile`.
    """

    runner: EvaluationRunner

    def __init__(self) -> None:
        self._tiles: set[Tile] = set()
        self._bound: dict[str, Any] = {}
        self._kinds: dict[str, list[str]] = {}
        self._calls: list[KernelCall] | None = None  # while they are recorded
        self._results: list[Tensor] = []

    def tile(self, size: int, stride: int, channels: int, out_channels: int, out_width: int) -> Tile:
        """Request the tile of a convolution; its kernel is compiled with the others."""
        tile = tile_for(size, stride, channels, out_channels, out_width)
        self._tiles.add(tile)
        return tile

    def compile(self) -> None:
        """Compile and bind all functions.

        Raises:
            KernelError: if there is no C compiler, or its output cannot be loaded here.
        """
        tiles = sorted(self._tiles)
        library = compiled([tile.source for tile in tiles])
        check_struct_sizes(library)
        self._kinds = {**SIGNATURES, **{tile.name: CONVOLUTION for tile in tiles}}
        for name in self._kinds:
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_long, ctypes.POINTER(Argument)], None
            self._bound[name] = function
        self.runner = EvaluationRunner(library)

    @contextmanager
    def recording(self) -> Iterator[tuple[list[KernelCall], list[Tensor]]]:
        """Record all calls, and all tensors allocated for their results. The list keeps these alive, so that no two
        results share memory."""
        self._calls, self._results = [], []
        try:
            yield self._calls, self._results
        finally:
            self._calls, self._results = None, []

    def empty(self, batch: int, channels: int, height: int, width: int) -> Tensor:
        """Allocate (B, C, H, W) with the channels last in memory."""
        return self.scratch(batch, height, width, channels).permute(0, 3, 1, 2)

    def scratch(self, *shape: int) -> Tensor:
        """Allocate a tensor of any shape, the batch first."""
        # Not zeroed: every kernel writes its whole result.
        tensor = torch.empty(shape)
        if self._calls is not None:
            self._results.append(tensor)
        return tensor

    def call(self, name: str, batch: int, *arguments: Any) -> None:
        """Call a kernel of SIGNATURES or a tile's, with the arguments after the batch."""
        kernel, kinds = self._bound[name], self._kinds[name]
        # Recorded calls are made, too, so that the layers after them read real values.
        kernel(batch, argument_list(kinds, arguments))
        if self._calls is not None:
            self._calls.append(KernelCall(kernel, kinds, arguments))

    def convolve(self, tile: Tile, x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor | None) -> Tensor:
        """Convolve x, which has its border, with a weight of `packed_weight`; then add a tensor of the result's shape,
        if any."""
        batch, _, height, width = x.shape
        channels = bias.shape[0]
        out_height, out_width = (height - tile.size) // tile.stride + 1, (width - tile.size) // tile.stride + 1
        out = self.empty(batch, channels, out_height, out_width)
        if tile.is_pointwise:
            pixels = height * width
            # A 1×1 convolution reads no neighbors: the map becomes a few long rows, whatever its width.
            height = out_height = pointwise_rows(pixels, tile)
            width = out_width = pixels // height
        assert out_width >= tile.pixels, (x.shape, tile)
        self.call(
            tile.name,
            batch,
            x.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            _pointer(addend),
            out.data_ptr(),
            height,
            width,
            out_height,
            out_width,
            channels,
        )
        return out

    def norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        *,
        silu: bool,
        border: int,
        addend: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """GroupNorm of x + addend, times 1 + scale, plus shift; then SiLU, if asked for; zeros around it.

        groups: `norm_chunk` of them and C is not None; weight, bias: (C,); addend, scale, shift: (B, C), columns of
        tensors with the same width. Returns (B, C, H + 2·border, W + 2·border).
        """
        batch, channels, height, width = x.shape
        out = self.empty(batch, channels, height + 2 * border, width + 2 * border)
        # Both are columns of the projections of all blocks, so a row's stride is theirs, not C.
        row = addend if addend is not None else scale
        self.call(
            "denoised_norm",
            batch,
            x.data_ptr(),
            _pointer(addend),
            _pointer(scale),
            _pointer(shift),
            row.stride(0) if row is not None else 0,
            weight.data_ptr(),
            bias.data_ptr(),
            out.data_ptr(),
            height,
            width,
            channels,
            channels // groups,
            norm_chunk(channels, groups),
            border,
            eps,
            silu,
        )
        return out

    def pad(self, x: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Zeros around each image."""
        batch, channels, height, width = x.shape
        out = self.empty(batch, channels, top + height + bottom, left + width + right)
        self.call(
            "denoised_pad", batch, x.data_ptr(), out.data_ptr(), height, width, channels, top, bottom, left, right
        )
        return out

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """The channels of x, then those of y."""
        batch, left, height, width = x.shape
        right = y.shape[1]
        out = self.empty(batch, left + right, height, width)
        self.call("denoised_join", batch, x.data_ptr(), y.data_ptr(), out.data_ptr(), height * width, left, right)
        return out

    def interleave(self, x: Tensor) -> Tensor:
        """(B, 4·C, H + 1, W + 1) → (B, C, 2·H, 2·W): (2i + a, 2j + b) is channels (2a + b)·C … at (i + a, j + b)."""
        batch, channels, height, width = x.shape[0], x.shape[1] // 4, x.shape[2] - 1, x.shape[3] - 1
        out = self.empty(batch, channels, 2 * height, 2 * width)
        self.call("denoised_interleave", batch, x.data_ptr(), out.data_ptr(), height, width, channels)
        return out

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """softmax(q·kᵀ/√D)·v. qkv: (B, 3·heads·D, H, W), D a multiple of LANES. Returns (B, heads·D, H, W)."""
        batch, channels, height, width = qkv.shape
        # With the channels last a pixel's row is q, k, v, each (heads, D).
        tokens, depth = height * width, channels // (3 * heads)
        # Rounded up to whole vectors.
        padded = -(-tokens // LANES) * LANES
        out = self.empty(batch, heads * depth, height, width)
        # For each head: its keys, transposed, (D, padded), and one row of scores for each of QUERIES queries.
        scratch = self.scratch(batch, heads, depth + QUERIES, padded)
        # Vaswani et al. 2017 (arXiv:1706.03762), equation 1.
        scale = 1.0 / math.sqrt(depth)
        self.call(
            "denoised_attend", batch, qkv.data_ptr(), out.data_ptr(), scratch.data_ptr(), tokens, heads, depth, scale
        )
        return out


def _pointer(x: Tensor | None) -> int | None:
    return x.data_ptr() if x is not None else None
