"""The C functions of this folder, bound with ctypes, and which of their convolutions a network needs."""

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
from denoised.model.backends.native.thread_pool import Runner

LANES = 16  # as in simd.h
MOST_PIXELS, MOST_VECTORS = 14, 4  # as in convolutions.c
QUERIES = 7  # as in attention.c
LARGEST_CHUNK = 4096  # channels of a norm's unit of work; they lie on a thread's stack
LONGEST_ATTENTION = 1024  # tokens
POINTER, NUMBER, REAL = "pointer", "number", "real"  # kinds of arguments, as in kernel_abi.h
SIGNATURES: dict[str, list[str]] = {  # after the batch
    "denoised_norm": [POINTER] * 4 + [NUMBER] + [POINTER] * 3 + [NUMBER] * 6 + [REAL, NUMBER],
    "denoised_pad": [POINTER] * 2 + [NUMBER] * 7,
    "denoised_join": [POINTER] * 3 + [NUMBER] * 3,
    "denoised_interleave": [POINTER] * 2 + [NUMBER] * 3,
    "denoised_attend": [POINTER] * 3 + [NUMBER] * 3 + [REAL],
}
CONVOLUTION = [POINTER] * 5 + [NUMBER] * 5


class Argument(ctypes.Union):
    """An argument of a kernel, as in kernel_abi.h."""

    _fields_ = ((POINTER, ctypes.c_void_p), (NUMBER, ctypes.c_long), (REAL, ctypes.c_float))


@dataclass(frozen=True, order=True)
class Tile:
    """What of a convolution is held in registers: pixels of a row by vectors of output channels.

    size, stride: of the convolution, square; channels: of its input.
    """

    size: int
    stride: int
    channels: int
    pixels: int
    vectors: int

    @property
    def name(self) -> str:
        """Of its function."""
        return f"denoised_convolve_{self.size}_{self.stride}_{self.channels}_{self.pixels}_{self.vectors}"

    @property
    def source(self) -> str:
        """Its line in convolutions.c."""
        return f"TILE({self.size}, {self.stride}, {self.channels}, {self.pixels}, {self.vectors})"


def tile_for(size: int, stride: int, channels: int, out_channels: int, out_width: int) -> Tile:
    """The tile that does a convolution in the fewest cycles; out_channels is a multiple of LANES."""
    shapes = [
        (pixels, vectors)
        for pixels in range(1, min(MOST_PIXELS, out_width) + 1)
        for vectors in range(1, MOST_VECTORS + 1)
        if pixels * vectors <= _registers() and out_channels // LANES % vectors == 0
    ]

    def cycles(shape: tuple[int, int]) -> tuple[float, int]:
        """For each weight of a row: two vectors a cycle, and two cycles for what is beside it (measured); of two
        shapes, the one that passes fewer weights."""
        pixels, vectors = shape
        tiles = math.ceil(out_width / pixels) * (out_channels // LANES // vectors)
        return tiles * max(pixels * vectors / 2 + 2, 3.5), vectors

    pixels, vectors = min(shapes, key=cycles)
    return Tile(size, stride, channels, pixels, vectors)


def _registers() -> int:
    """Vectors of LANES that sums may take: AVX-512 has 32 registers of one, AVX2 16 of half a one."""
    return 28 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 6


@dataclass(frozen=True)
class Call:
    """A kernel that was called: its arguments after the batch, and their kinds."""

    kernel: Callable[..., None]
    kinds: Sequence[str]
    arguments: Sequence[Any]

    @property
    def pointers(self) -> list[int]:
        """Those arguments that point somewhere."""
        given = zip(self.kinds, self.arguments, strict=True)
        return [value for kind, value in given if kind == POINTER and value is not None]


class Kernels:
    """The kernels of one network: first told which tiles it needs, then compiled, then called.

    runner: the functions of thread_pool.c, there once they are compiled.

    Tensors are (B, C, H, W) float32 on the CPU, their channels last in memory.
    """

    runner: Runner

    def __init__(self) -> None:
        self._tiles: set[Tile] = set()
        self._bound: dict[str, Any] = {}
        self._kinds: dict[str, list[str]] = {}
        self._calls: list[Call] | None = None  # while they are recorded
        self._made: list[Tensor] = []

    def tile(self, size: int, stride: int, channels: int, out_channels: int, out_width: int) -> Tile:
        """The tile for a convolution; its kernel is compiled with the others."""
        tile = tile_for(size, stride, channels, out_channels, out_width)
        self._tiles.add(tile)
        return tile

    def compile(self) -> None:
        """Make them callable.

        Raises:
            KernelError: where there is no C compiler, or it makes nothing that can be loaded here.
        """
        tiles = sorted(self._tiles)
        library = compiled([tile.source for tile in tiles])
        self._kinds = {**SIGNATURES, **{tile.name: CONVOLUTION for tile in tiles}}
        for name in self._kinds:
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_long, ctypes.POINTER(Argument)], None
            self._bound[name] = function
        self.runner = Runner(library)

    @contextmanager
    def recorded(self) -> Iterator[tuple[list[Call], list[Tensor]]]:
        """Note all calls, and all tensors made for their results; these are kept, so that no two share memory."""
        self._calls, self._made = [], []
        try:
            yield self._calls, self._made
        finally:
            self._calls, self._made = None, []

    def empty(self, batch: int, channels: int, height: int, width: int) -> Tensor:
        """(B, C, H, W), its channels last in memory."""
        return self._empty(batch, height, width, channels).permute(0, 3, 1, 2)

    def _empty(self, *shape: int) -> Tensor:
        made = torch.empty(shape)
        if self._calls is not None:
            self._made.append(made)
        return made

    def _call(self, name: str, batch: int, *arguments: Any) -> None:
        kernel, kinds = self._bound[name], self._kinds[name]
        kernel(batch, argument_list(kinds, arguments))
        if self._calls is not None:
            self._calls.append(Call(kernel, kinds, arguments))

    def convolve(self, tile: Tile, x: Tensor, weight: Tensor, bias: Tensor, plus: Tensor | None) -> Tensor:
        """x with its borders, by the weights of `packed_weight`, plus a tensor of the result's shape, if any."""
        batch, _, height, width = x.shape
        channels = bias.shape[0]
        out_height, out_width = (height - tile.size) // tile.stride + 1, (width - tile.size) // tile.stride + 1
        assert out_width >= tile.pixels, (x.shape, tile)
        out = self.empty(batch, channels, out_height, out_width)
        self._call(
            tile.name,
            batch,
            x.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            _pointer(plus),
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
        plus: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """GroupNorm of x + plus, times 1 + scale, plus shift; then SiLU, if asked for; zeros around it.

        C and groups: such that `chunk` is not None; weight, bias: (C,); plus, scale, shift: (B, C),
        columns of tensors of one width. Returns (B, C, H + 2·border, W + 2·border).
        """
        batch, channels, height, width = x.shape
        out = self.empty(batch, channels, height + 2 * border, width + 2 * border)
        row = plus if plus is not None else scale
        self._call(
            "denoised_norm",
            batch,
            x.data_ptr(),
            _pointer(plus),
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
            chunk(channels, groups),
            border,
            eps,
            silu,
        )
        return out

    def pad(self, x: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Zeros around each picture."""
        batch, channels, height, width = x.shape
        out = self.empty(batch, channels, top + height + bottom, left + width + right)
        self._call(
            "denoised_pad", batch, x.data_ptr(), out.data_ptr(), height, width, channels, top, bottom, left, right
        )
        return out

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """The channels of x, then those of y."""
        batch, left, height, width = x.shape
        right = y.shape[1]
        out = self.empty(batch, left + right, height, width)
        self._call("denoised_join", batch, x.data_ptr(), y.data_ptr(), out.data_ptr(), height * width, left, right)
        return out

    def interleave(self, x: Tensor) -> Tensor:
        """(B, 4·C, H + 1, W + 1) → (B, C, 2·H, 2·W): (2i + a, 2j + b) is channels (2a + b)·C … at (i + a, j + b)."""
        batch, channels, height, width = x.shape[0], x.shape[1] // 4, x.shape[2] - 1, x.shape[3] - 1
        out = self.empty(batch, channels, 2 * height, 2 * width)
        self._call("denoised_interleave", batch, x.data_ptr(), out.data_ptr(), height, width, channels)
        return out

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """softmax(q·k/√D)·v. qkv: (B, 3·heads·D, H, W), D a multiple of LANES. Returns (B, heads·D, H, W)."""
        batch, channels, height, width = qkv.shape
        tokens, depth = height * width, channels // (3 * heads)
        wide = -(-tokens // LANES) * LANES
        out = self.empty(batch, heads * depth, height, width)
        scratch = self._empty(batch, heads, depth + QUERIES, wide)
        scale = 1.0 / math.sqrt(depth)
        self._call(
            "denoised_attend", batch, qkv.data_ptr(), out.data_ptr(), scratch.data_ptr(), tokens, heads, depth, scale
        )
        return out


def argument_list(kinds: Sequence[str], arguments: Sequence[Any]) -> ctypes.Array[Argument]:
    """Arguments of a kernel as it takes them."""
    return (Argument * len(kinds))(*(Argument(**{k: v}) for k, v in zip(kinds, arguments, strict=True)))


def chunk(channels: int, groups: int) -> int | None:
    """Channels of a norm's unit of work: whole groups, whole vectors. None where the kernel has no such unit."""
    if channels % LANES:
        return None
    fewest = math.lcm(channels // groups, LANES)
    size = fewest if channels % fewest == 0 else channels
    return size if size <= LARGEST_CHUNK else None


def packed_weight(weight: Tensor, tile: Tile) -> Tensor:
    """(O, C, K, K) → (O/(vectors·LANES), K, K, C, vectors·LANES), as a tile goes through them."""
    bands = weight.unflatten(0, (-1, tile.vectors * LANES))  # (bands, V·LANES, C, K, K)
    return bands.permute(0, 3, 4, 2, 1).contiguous()


def _pointer(x: Tensor | None) -> int | None:
    return x.data_ptr() if x is not None else None
