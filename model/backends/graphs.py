"""A U-Net on a CUDA device as recorded graphs (`model.backends.tiled_graphs`)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from denoised.model.backends.numerics import Precision
from denoised.model.backends.precision import DTYPES
from denoised.model.backends.tile_size import Tiling, row_cost, tiling
from denoised.model.backends.tiled_graphs import Inputs, TiledGraphs
from denoised.model.errors import KernelError
from denoised.model.networks.unet.unet import UNet


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
        # Not from 0: Fourier features take the logarithm of t.
        self._first_t, self._last_t = min(1.0, timesteps - 1), timesteps - 1
        self._shape = shape
        self._device = next(unet.parameters()).device
        example = {"x": torch.zeros(1, *shape), "t": torch.full((1,), float(self._first_t))}
        if self._takes_labels:
            example["label"] = torch.zeros(1, dtype=torch.long)
        example = {name: tensor.to(self._device) for name, tensor in example.items()}
        try:
            self._unet = in_precision(unet, precision)  # kept alive: the graphs read its weights
            pool = torch.cuda.graph_pool_handle()
            output = (unet.config.out_channels, *shape[1:])
            self._graphs = TiledGraphs(self._evaluate, example, output, self.tiling, precision, pool)
            self._graphs.check(self._draw)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise KernelError(f"the network cannot be recorded on {self._device} ({reason})") from error

    def begin(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Callable[[], Tensor]:
        """Launch an evaluation; the device works on it while the host goes on."""
        output = self(x, t, label)
        return lambda: output

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """As `UNet.forward`, for x (B, *shape); not by two threads at a time."""
        assert tuple(x.shape[1:]) == self._shape, (x.shape, self._shape)
        inputs = {"x": x, "t": t}
        if label is not None and self._takes_labels:
            inputs["label"] = label
        return self._graphs(inputs)

    def _evaluate(self, inputs: Inputs) -> Tensor:
        return evaluate_in_precision(self._unet, inputs["x"], inputs["t"], inputs.get("label"))

    def _draw(self, rows: int, generator: torch.Generator) -> Inputs:
        """Inputs for the comparison: unit noise, all timesteps, all classes."""
        inputs = {
            "x": torch.randn(rows, *self._shape, generator=generator).to(self._device),
            "t": torch.linspace(self._first_t, self._last_t, rows, device=self._device),
        }
        if self._takes_labels:
            inputs["label"] = torch.arange(rows, device=self._device) % max(self._classes, 1)
        return inputs


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
