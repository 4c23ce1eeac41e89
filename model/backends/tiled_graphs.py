"""The evaluation of a network on a CUDA device as recorded graphs of launches, for tiles of a fixed number of rows.

With a small network a GPU waits for Python: 160 launches take 5 ms, and the GPU works for 1.5 of them. Recorded once
(`torch.cuda.CUDAGraph`), they are launched together. Kernels differ from one batch size to another, and a row's last
bits with them, so there is only one size, the tile of T rows. A second graph evaluates two tiles on two streams, each
with the kernels of one, and so on up to K tiles: a batch of up to K·T rows is one replay, and a lone row pays for one
tile. T and K follow from the network (`model.backends.tile_size`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from denoised.model.backends.numerics import Precision
from denoised.model.backends.precision import arithmetic
from denoised.model.backends.tile_size import Tiling
from denoised.model.errors import KernelError

WARM_UP = 3  # evaluations before the recording, in which libraries load and choose their kernels
ORDERS = 4  # of the rows that `check` compares, for each number of tiles

Inputs = Mapping[str, Tensor]
Evaluate = Callable[[Inputs], Tensor]


class TiledGraphs:
    """An evaluation of inputs of one shape. Not for two threads at a time.

    evaluate: the network for the T rows of a tile; called for the recording alone, so what it reads besides its inputs
        has to stay at its address.
    example: a row of each input, (1, …); all rows start with it.
    shape: of a row of the output, which is float32.
    pool: of the graphs' memory (`torch.cuda.graph_pool_handle`). Graphs that never run at the same time may share one,
        because they leave no tensors in it.

    Raises:
        RuntimeError: if the device cannot record it.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        example: Inputs,
        shape: tuple[int, ...],
        tiling: Tiling,
        precision: Precision,
        pool: Any,
    ) -> None:
        self.tiling = tiling
        self._evaluate = evaluate
        rows = tiling.replay_rows
        self._device = next(iter(example.values())).device
        with torch.inference_mode(False), torch.no_grad():  # tensors that later calls may write in any mode
            # The graphs read and write at these addresses. They lie outside the graphs' memory.
            self._inputs = {name: row.repeat(rows, *[1] * (row.dim() - 1)) for name, row in example.items()}
            self._output = torch.zeros(rows, *shape, device=self._device)
            self._graphs = self._record(precision, pool)

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Tensor:
        """inputs: (B, …) by name; one that is left out keeps what an earlier call left in it. Returns (B, *shape)."""
        count = len(next(iter(inputs.values())))
        out = torch.empty(count, *self._output.shape[1:], device=self._device)
        for start in range(0, count, self.tiling.replay_rows):
            part = slice(start, min(start + self.tiling.replay_rows, count))
            rows = part.stop - start
            # Rows beyond these keep what an earlier replay left in them.
            for name, tensor in inputs.items():
                self._inputs[name][:rows].copy_(tensor[part])
            self._graphs[-(-rows // self.tiling.rows)].replay()
            out[part].copy_(self._output[:rows])
        return out

    def check(self, draw: Callable[[int, torch.Generator], Inputs]) -> None:
        """Check that a row has the same bits at every place of every graph, next to any others, and alone.

        draw: different inputs of so many rows.

        Raises:
            KernelError: if it does not.
        """
        generator, size = torch.Generator().manual_seed(0), self.tiling.rows
        rows = self.tiling.replay_rows + size // 2 + 1  # the last replay is not full
        inputs = draw(rows, generator)
        alone = torch.cat([self(_rows(inputs, slice(row, row + 1))) for row in range(rows)])
        for tiles in range(1, self.tiling.tiles + 1):
            for _ in range(ORDERS):
                order = torch.randperm(rows, generator=generator).to(self._device)
                for count in (rows, tiles * size, tiles * size - size // 2):
                    own = order[:count]
                    # As integers, NaN equals itself.
                    if not torch.equal(self(_rows(inputs, own)).view(torch.int32), alone[own].view(torch.int32)):
                        raise KernelError(f"the bits of an image depend on its neighbors on {self._device}")

    def _record(self, precision: Precision, pool: Any) -> dict[int, torch.cuda.CUDAGraph]:
        """The graph of each number of tiles, 1 … K."""
        graphs = {}
        with arithmetic(precision):
            streams = [torch.cuda.Stream(self._device) for _ in range(self.tiling.tiles)]
            for _ in range(WARM_UP):
                self._evaluate_tiles(streams)
            for tiles in range(self.tiling.tiles, 0, -1):
                graphs[tiles] = torch.cuda.CUDAGraph()
                # Only this thread's calls may break the recording: others go on, as when a model is added to a worker.
                with torch.cuda.graph(graphs[tiles], pool=pool, capture_error_mode="thread_local"):
                    self._evaluate_tiles(streams[:tiles])
        return graphs

    def _evaluate_tiles(self, streams: Sequence[torch.cuda.Stream]) -> None:
        """Evaluate the first tiles, each on a stream of its own; the current stream waits for all."""
        origin = torch.cuda.current_stream(self._device)
        for index, stream in enumerate(streams):
            stream.wait_stream(origin)
            with torch.cuda.stream(stream):
                self._evaluate_tile(slice(index * self.tiling.rows, (index + 1) * self.tiling.rows))
        for stream in streams:
            origin.wait_stream(stream)

    def _evaluate_tile(self, rows: slice) -> None:
        # Copies are aligned alike for every tile. Kernels may depend on the alignment of their input.
        inputs = {name: tensor[rows].clone() for name, tensor in self._inputs.items()}
        self._output[rows].copy_(self._evaluate(inputs))


def _rows(inputs: Inputs, rows: slice | Tensor) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in inputs.items()}
