"""A text-conditioned U-Net on a CUDA device as recorded graphs, for each shape of latents and text.

Requests differ in size and in the length of their prompts, and a graph has one shape. Those of the model's own size and
of one part of a prompt are recorded and checked at the start, the others when a request needs them first: a second or
two, in which the device does nothing else. `MAX_SHAPES` of them are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from denoised.model.backends.numerics import Precision
from denoised.model.backends.tile_size import Tiling, text_row_cost, tiling
from denoised.model.backends.tiled_graphs import Inputs, TiledGraphs
from denoised.model.errors import KernelError
from denoised.model.networks.text_unet.text_unet import TextUNet

MAX_SHAPES = 8  # of recorded evaluations; the one that was used longest ago makes room

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class GraphedTextUNet:
    """The same function as the `TextUNet` that it is made from, for inference on a CUDA device. A `TextBackend`.

    unet: in the precision in which it is evaluated; it stays as it is, and may be evaluated by others.
    example: a row of each input (1, …), of the model's own size and one part of a prompt.
    timesteps: T of the training.
    tiles: the tiles of every shape; by the fixed rule, from the cost of the shape, unless given.

    Attributes:
        tile_rows: T for the model's own size.

    Raises:
        KernelError: if the device cannot record it, or an image's bits depend on its neighbors.
    """

    min_pipelined_images: int | None = None

    def __init__(
        self,
        unet: TextUNet,
        example: Inputs,
        timesteps: int,
        precision: Precision = "float32",
        tiles: Tiling | None = None,
    ) -> None:
        self._unet = unet
        self._last_t = timesteps - 1
        self._precision = precision
        self._tiles = tiles
        self._weight = unet.conv_in.weight
        self._recorded: OrderedDict[Shapes, TiledGraphs] = OrderedDict()
        try:
            self._pool = torch.cuda.graph_pool_handle()
            self.tile_rows = self._graphs_of(example).tiling.rows
        except RuntimeError as error:  # also if there is too little memory at the start
            raise self._refusal(error) from error

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Tensor:
        """As `TextUNet.forward`, with inputs and output in float32.

        Raises:
            KernelError: if the device cannot record this shape.
        """
        inputs = {"x": x, "t": t, "context": context, **added}
        return self._graphs_of(inputs)(inputs)

    def begin(self, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Callable[[], Tensor]:
        """Launch an evaluation; the device works on it while the host goes on."""
        output = self(x, t, context, **added)
        return lambda: output

    def _graphs_of(self, inputs: Mapping[str, Tensor]) -> TiledGraphs:
        """The graphs for inputs of these shapes; recorded and checked if they are new."""
        shapes = tuple((name, tuple(tensor.shape[1:])) for name, tensor in sorted(inputs.items()))
        if shapes not in self._recorded:
            # Before the recording, which needs their memory.
            while len(self._recorded) >= MAX_SHAPES:
                self._recorded.popitem(last=False)
            self._recorded[shapes] = self._record(inputs)
        self._recorded.move_to_end(shapes)
        return self._recorded[shapes]

    def _record(self, inputs: Mapping[str, Tensor]) -> TiledGraphs:
        example = {name: tensor[:1] for name, tensor in inputs.items()}
        tiles = self._tiles or tiling(text_row_cost(self._unet.config, example))
        output = (self._unet.config.out_channels, *inputs["x"].shape[2:])
        try:
            graphs = TiledGraphs(self._evaluate, example, output, tiles, self._precision, self._pool)
            graphs.check(lambda rows, generator: self._draw(example, rows, generator))
        except torch.OutOfMemoryError:
            raise  # the batch is tried again, smaller
        except RuntimeError as error:
            raise self._refusal(error) from error
        return graphs

    def _refusal(self, error: RuntimeError) -> KernelError:
        reason = str(error).splitlines()[0]
        return KernelError(f"the network cannot be recorded on {self._weight.device} ({reason})")

    def _evaluate(self, inputs: Inputs) -> Tensor:
        dtype = self._weight.dtype
        added = {name: tensor for name, tensor in inputs.items() if name not in ("x", "t", "context")}
        x, context = inputs["x"].to(dtype), inputs["context"].to(dtype)
        return self._unet(x, inputs["t"], context, **added).float()

    def _draw(self, example: Inputs, rows: int, generator: torch.Generator) -> Inputs:
        """Inputs for the comparison: unit noise for all but t, which takes all timesteps."""
        device = self._weight.device
        drawn = {
            name: torch.randn(rows, *row.shape[1:], generator=generator).to(device) for name, row in example.items()
        }
        drawn["t"] = torch.linspace(min(1.0, self._last_t), self._last_t, rows, device=device)
        return drawn
