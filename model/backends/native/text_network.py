"""A text-conditioned U-Net whose parts are compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from denoised.model.backends.native.conversion import Conversion
from denoised.model.backends.native.kernels import MAX_TOKENS
from denoised.model.backends.native.layers import channels_last
from denoised.model.backends.native.network import MIN_PIPELINED
from denoised.model.backends.native.recorded_graph import RecordedGraph
from denoised.model.backends.native.recording import record_graph
from denoised.model.backends.native.row_cache import RowCache
from denoised.model.backends.native.tiles import LANES, norm_chunk
from denoised.model.errors import KernelError
from denoised.model.networks.text_unet import TextUNet
from denoised.model.networks.text_unet_parts import SpatialTransformer, TokenAttention

CHUNK = 4  # images that share the weights that a thread reads, if these do not fit into its caches
CACHED_WEIGHTS = 4 * 2**20  # bytes
MAX_GRAPHS = 8  # of different sizes and lengths of text


class NativeTextUNet(nn.Module):
    """The same function as the `TextUNet` that it is made from, for inference on a CPU, in float32. A `TextBackend`.

    The U-Net stays as it is.

    Raises:
        KernelError: if the kernels cannot be compiled, or do not fit the network.
    """

    def __init__(self, unet: TextUNet, shape: tuple[int, int, int]) -> None:
        """shape: (C, H, W) of the latents that it is compiled for; other sizes work too."""
        super().__init__()
        check_fit(unet, shape)
        unet = deepcopy(unet)
        conversion = Conversion(unet, _example(unet, shape))
        project = conversion.embedding_projection()
        text_projection = conversion.text_projection()
        conversion.convert(unet)
        self._unet = unet
        ...
