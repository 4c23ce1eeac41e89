"""A U-Net on a CUDA device as recorded graphs of launches, for tiles of a fixed number of images.

With a small network a GPU waits for Python: 160 launches take 5 ms, and the GPU works for 1.5 of them. Recorded once
(`torch.cuda.CUDAGraph`), they are launched together. Kernels differ from one batch size to another, and an image's last
bits with them, so there is only one size, the tile of T images. A second graph evaluates two tiles on two streams, each
with the kernels of one, and so on up to K tiles: a batch of up to K·T images is one replay, and a lone image pays for
one tile. T and K follow from the network (`model.backends.tile_size`). The constructor checks the bits on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from denoised.model.backends.numerics import Precision
from denoised.model.backends.precision import DTYPES, arithmetic
from denoised.model.backends.tile_size import Tiling, row_cost, tiling
from denoised.model.errors import KernelError
from denoised.model.networks.unet.unet import UNet

WARM_UP = 3  # evaluations before the recording, in which libraries load and choose their kernels
ORDERS = 4  # of the rows that the constructor compares, for each number of tiles


class GraphedUNet(nn.Module):
    """The same function as the `UNet` that it is made from, for inference on a CUDA device. A `Backend`.

    The U-Net stays as it is.

    Attributes:
        tiling: T and K.

    Raises:
        KernelError: if the device cannot record it, or an image's bits depend on its neighbors.
    """

    min_pipelined_images: int | None = None

    def __init__(
        self,
        unet: UNet,
        shape: tuple[int, int, int],
        timesteps: int,
        precision: Precision = "float32",
        tiles: Tiling | None = None,
    ) -> None:
        """shape: (C, H, W) of the images, the only one that it takes; timesteps: T of the training, as many rows as a
        learned embedding has; precision: of convolutions and matrix products, see `model.backends.precision`; tiles:
        by the fixed rule unless given.
        """
        super().__init__()
        self.tiling = tiles or tiling(row_cost(unet, shape))
        self._classes = unet.config.num_class_embeds or 0
        self._takes_labels = unet.class_embedding is not None
        self._last_t = timesteps - 1
        self._precision = precision
        self._shape = shape
        device, rows = next(unet.parameters()).device, self.tiling.replay_rows
        # The graphs read and write at these addresses. They lie outside the graphs' memory, which all graphs share.
        self._x = torch.zeros(rows, *shape, device=device)
        self._t = torch.full((rows,), min(1.0, self._last_t), device=device)
        self._label = torch.zeros(rows, dtype=torch.long, device=device)
        self._output = torch.zeros(rows, unet.config.out_channels, *shape[1:], device=device)
        try:
            self._unet = in_precision(unet, precision)  # kept alive: the graphs read its weights
            self._graphs = self._record()
            self._check()
        except RuntimeError as error:
            raise KernelError(f"the network cannot be recorded on {device} ({str(error).splitlines()[0]})") from error

    def begin(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Callable[[], Tensor]:
        """Launch an evaluation; the device works on it while the host goes on."""
        output = self(x, t, label)
        return lambda: output

    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """As `UNet.forward`, for x (B, *shape); not by two threads at a time."""
        assert tuple(x.shape[1:]) == self._shape, (x.shape, self._shape)
        out = x.new_empty(len(x), *self._output.shape[1:])
        for start in range(0, len(x), self.tiling.replay_rows):
            part = slice(start, min(start + self.tiling.replay_rows, len(x)))
            count = part.stop - start
            # Rows beyond `count` keep what an earlier replay left in them.
            self._x[:count].copy_(x[part])
            self._t[:count].copy_(t[part])
            if label is not None:
                self._label[:count].copy_(label[part])
            self._graphs[-(-count // self.tiling.rows)].replay()
            out[part].copy_(self._output[:count])
        return out

    @torch.no_grad()
    def _record(self) -> dict[int, torch.cuda.CUDAGraph]:
        """The graph of each number of tiles, 1 … K."""
        device = self._x.device
        with arithmetic(self._precision):
            streams = [torch.cuda.Stream(device) for _ in range(self.tiling.tiles)]
            for _ in range(WARM_UP):
                self._evaluate_tiles(streams)
            # One pool, because graphs never run at the same time and leave no tensors in it.
            pool, graphs = torch.cuda.graph_pool_handle(), {}
            for tiles in range(self.tiling.tiles, 0, -1):
                graphs[tiles] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graphs[tiles], pool=pool):
                    self._evaluate_tiles(streams[:tiles])
        return graphs

    def _evaluate_tiles(self, streams: Sequence[torch.cuda.Stream]) -> None:
        """Evaluate the first tiles, each on a stream of its own; the current stream waits for all."""
        origin = torch.cuda.current_stream(self._x.device)
        for index, stream in enumerate(streams):
            stream.wait_stream(origin)
            with torch.cuda.stream(stream):
                self._evaluate_tile(slice(index * self.tiling.rows, (index + 1) * self.tiling.rows))
        for stream in streams:
            origin.wait_stream(stream)

    def _evaluate_tile(self, rows: slice) -> None:
        # Copies are aligned alike for every tile. Kernels may depend on the alignment of their input.
        x, t = self._x[rows].clone(), self._t[rows].clone()
        label = self._label[rows].clone() if self._takes_labels else None
        self._output[rows].copy_(evaluate_in_precision(self._unet, x, t, label))

    def _check(self) -> None:
        """Check that an image has the same bits at every place of every graph, next to any others, and alone.

        Raises:
            KernelError: if it has not.
        """
        generator, device, size = torch.Generator().manual_seed(0), self._x.device, self.tiling.rows
        rows = self.tiling.replay_rows + size // 2 + 1  # the last replay is not full
        x = torch.randn(rows, *self._shape, generator=generator).to(device)
        t = torch.linspace(min(1.0, self._last_t), self._last_t, rows, device=device)
        label = torch.arange(rows, device=device) % max(self._classes, 1)
        alone = torch.cat(
            [self.forward(x[row : row + 1], t[row : row + 1], label[row : row + 1]) for row in range(rows)]
        )
        for tiles in range(1, self.tiling.tiles + 1):
            for _ in range(ORDERS):
                order = torch.randperm(rows, generator=generator).to(device)
                for count in (rows, tiles * size, tiles * size - size // 2):
                    own = order[:count]
                    found = self.forward(x[own], t[own], label[own])
                    # As integers, NaN equals itself.
                    if not torch.equal(found.view(torch.int32), alone[own].view(torch.int32)):
                        raise KernelError(f"the bits of an image depend on its neighbors on {device}")


def in_precision(unet: UNet, precision: Precision) -> UNet:
    """The network itself, or a copy with layers in a half precision.

    The features of t stay in float32: in bfloat16, Fourier features would be off by whole periods.
    """
    if DTYPES[precision] == torch.float32:
        return unet
    copy = deepcopy(unet).to(DTYPES[precision])
    copy.time_proj = deepcopy(unet.time_proj)
    return copy


def evaluate_in_precision(unet: UNet, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """`UNet.forward` with layers in the type of their weights; what is around them stays in float32."""
    dtype = unet.conv_in.weight.dtype
    x, level = unet.prepare(x, t)
    return unet.finish(unet.evaluate(x.to(dtype), unet.embed(level, label, dtype)).float(), level)
