"""A text-conditioned U-Net whose parts are compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from denoised.model.backends.native.conversion import NativeConversion
from denoised.model.backends.native.kernels import MAX_TOKENS
from denoised.model.backends.native.layers import channels_last
from denoised.model.backends.native.network import MIN_PIPELINED
from denoised.model.backends.native.recorded_graph import RecordedGraph
from denoised.model.backends.native.recording import record_graph
from denoised.model.backends.native.tiles import LANES, norm_chunk
from denoised.model.backends.native.transformers.row_cache import RowCache
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.transformer import TokenAttention, TransformerLayer

CHUNK = 4  # images that share the weights that a thread reads, if these do not fit into its caches
CACHED_WEIGHTS = 4 * 2**20  # bytes
MAX_GRAPHS = 8  # of different sizes and lengths of text


class NativeTextUNet(nn.Module):
    """The same function as the `TextUNet` that it is made from, for inference on a CPU, in float32. A `TextBackend`.

    The U-Net stays as it is.

    Raises:
        KernelError: if the kernels cannot be compiled.
    """

    def __init__(self, unet: TextUNet, shape: tuple[int, int, int]) -> None:
        """shape: (C, H, W) of the latents that it is compiled for (see `fits`); other sizes work too."""
        super().__init__()
        assert fits(unet, shape), "the kernels do not fit the network"
        unet = deepcopy(unet)
        conversion = NativeConversion(unet, _example(unet, shape))
        self._project = conversion.embedding_projection()
        self._text_projection = conversion.text_projection()
        conversion.convert(unet)
        self._unet = unet
        self._kernels = conversion.kernels
        self._kernels.compile()
        self._projections: dict[tuple[str, ...], RowCache] = {}  # by the names of the added inputs
        self._texts: dict[int, RowCache] = {}  # by the number of tokens
        # float32, so four bytes each.
        weights = sum(each.numel() for each in unet.parameters())
        self._chunk = CHUNK if 4 * weights > CACHED_WEIGHTS else 1
        self._graphs: dict[tuple[torch.Size, int], RecordedGraph | None] = {}  # by shape of the latents and text

    @property
    def min_pipelined_images(self) -> int | None:
        """See `NativeUNet`."""
        return max(MIN_PIPELINED, 2 * torch.get_num_threads()) if None not in self._graphs.values() else None

    def forward(self, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Tensor:
        """As `TextUNet.forward`; not by two threads at a time."""
        inputs = self._inputs(x, t, context, added)
        graph = self._graph_for(*inputs)
        return (self._unet.evaluate(*inputs) if graph is None else graph.run(*inputs)).contiguous()

    def begin(self, x: Tensor, t: Tensor, context: Tensor, **added: Tensor) -> Callable[[], Tensor]:
        """Begin to evaluate, in the background if the network is recorded; the returned function waits for it."""
        inputs = self._inputs(x, t, context, added)
        graph = self._graph_for(*inputs)
        if graph is None:
            return self._unet.evaluate(*inputs).contiguous
        result = graph.begin(*inputs)
        return lambda: result().contiguous()

    def _inputs(self, x: Tensor, t: Tensor, context: Tensor, added: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What `TextUNet.evaluate` takes of the inputs: x, and a row of each image for the residual blocks and one for
        the attentions."""
        names, count = tuple(sorted(added)), context.shape[1]
        if names not in self._projections:
            self._projections[names] = RowCache(
                lambda t, *values: self._embedded(t, dict(zip(names, values, strict=True)))
            )
        if count not in self._texts:
            self._texts[count] = RowCache(self._text_projection)
        # (B, projected_channels), by t and the added inputs; the text's keys and values do not depend on them.
        projections = self._projections[names](t, *(added[name] for name in names))
        return channels_last(x), projections, self._texts[count](context)

    def _embedded(self, t: Tensor, added: dict[str, Tensor]) -> Tensor:
        embedding: Tensor = self._project(self._unet.embed(t, torch.float32, **added))
        return embedding

    def _graph_for(self, x: Tensor, projections: Tensor, text: Tensor) -> RecordedGraph | None:
        """The recorded graph for latents and texts of these shapes; None if the network does more than call kernels."""
        key = (x.shape[1:], text.shape[1])
        if key not in self._graphs:
            if len(self._graphs) == MAX_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            example = [x[:1], projections[:1], text[:1]]
            self._graphs[key] = record_graph(self._kernels, self._unet.evaluate, example, self._chunk)
        return self._graphs[key]


def fits(unet: TextUNet, shape: tuple[int, int, int]) -> bool:
    """Whether the kernels can do all of a network's work on latents (C, H, W), and faster than others.

    Norms and heads must consist of whole vectors, and one text encoder's hidden states go to all attentions.
    """
    norms = [part for part in unet.modules() if isinstance(part, nn.GroupNorm)]
    attentions = [part for part in unet.modules() if isinstance(part, TokenAttention)]
    # Each level halves height and width.
    pixels = shape[1] * shape[2] // 4 ** _first_attending_level(unet)
    return (
        bool(attentions)
        and not isinstance(unet.config.cross_attention_dim, tuple)
        and pixels <= MAX_TOKENS
        and all(norm_chunk(norm.num_channels, norm.num_groups) is not None for norm in norms)
        and all(part.to_q.out_features // part.heads % LANES == 0 for part in attentions)
    )


def _first_attending_level(unet: TextUNet) -> int:
    """The level of the highest resolution at which the network attends."""
    levels = [k for k, kind in enumerate(unet.config.down_block_types) if kind == "CrossAttnDownBlock2D"]
    levels += [len(levels) - 1 - k for k, kind in enumerate(unet.config.up_block_types) if kind == "CrossAttnUpBlock2D"]
    return min(levels, default=unet.config.levels - 1)


def _example(unet: TextUNet, shape: tuple[int, int, int]) -> list[Tensor]:
    """Inputs of `TextUNet.evaluate` for one image."""
    config = unet.config
    embed_dim = config.time_embedding_dim or 4 * config.block_out_channels[0]
    width = next(layer.attn2.to_k.in_features for layer in unet.modules() if isinstance(layer, TransformerLayer))
    return [torch.zeros(1, *shape), torch.zeros(1, embed_dim), torch.zeros(1, 1, width)]
