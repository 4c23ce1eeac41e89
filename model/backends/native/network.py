"""A U-Net whose parts are compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from denoised.model.backends.native.conversion import NativeConversion
from denoised.model.backends.native.embedding_cache import EmbeddingCache
from denoised.model.backends.native.layers import channels_last
from denoised.model.backends.native.recorded_graph import RecordedGraph
from denoised.model.backends.native.recording import record_graph
from denoised.model.networks.unet.unet import UNet

MIN_PIPELINED = 8  # images


class NativeUNet(nn.Module):
    """The same function as the `UNet` that it is made from, for inference on a CPU, in float32. A `Backend`.

    The U-Net stays as it is.

    Raises:
        KernelError: if the kernels cannot be compiled.
    """

    def __init__(self, unet: UNet, shape: tuple[int, int, int]) -> None:
        """shape: (C, H, W) of the images that it is compiled for; larger ones work too, but not recorded."""
        super().__init__()
        unet = deepcopy(unet)  # `convert` changes it in place
        embed_dim = unet.time_embedding.linear_2.out_features
        conversion = NativeConversion(unet, [torch.zeros(1, *shape), torch.zeros(1, embed_dim)])
        project = conversion.embedding_projection()
        self._embedding_cache = EmbeddingCache(unet.embed, project, conversion.projected_channels)
        conversion.convert(unet)
        self._unet = unet
        self._kernels = conversion.kernels
        self._kernels.compile()
        self._shape = torch.Size(shape)
        self._graph: RecordedGraph | None = None
        self._recordable = True  # until an attempt to record it has failed

    @property
    def min_pipelined_images(self) -> int | None:
        """See `Backend`: enough images to keep all threads busy in both halves, and enough for an evaluation to take
        longer than the rest of a turn."""
        return max(MIN_PIPELINED, 2 * torch.get_num_threads()) if self._recordable else None

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """As `UNet.forward`; not by two threads at a time."""
        x, level = self._unet.prepare(x, t)
        x, projections = channels_last(x), self._embedding_cache(level, label)
        graph = self._graph_for(x, projections)
        h = self._unet.evaluate(x, projections) if graph is None else graph.run(x, projections)
        return self._unet.finish(h, level).contiguous()

    def begin(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Callable[[], Tensor]:
        """Begin to evaluate, in the background if the network is recorded; the returned function waits for it."""
        x, level = self._unet.prepare(x, t)
        x, projections = channels_last(x), self._embedding_cache(level, label)
        graph = self._graph_for(x, projections)
        if graph is None:
            output = self._unet.finish(self._unet.evaluate(x, projections), level)
            return output.contiguous
        result = graph.begin(x, projections)
        return lambda: self._unet.finish(result(), level).contiguous()

    def _graph_for(self, x: Tensor, projections: Tensor) -> RecordedGraph | None:
        """The recorded graph, if x has the shape that it was recorded for."""
        if x.shape[1:] != self._shape:
            return None
        if self._recordable and self._graph is None:
            self._record(x[:1], projections[:1])
        return self._graph

    def _record(self, x: Tensor, projections: Tensor) -> None:
        """Record the evaluation of one image (1, …), unless the network does more than call kernels."""
        self._graph = record_graph(self._kernels, self._unet.evaluate, [x, projections])
        self._recordable = self._graph is not None
