"""The kernels of a text-conditioned U-Net's transformers (transformer.c, attention.c).

Tokens are the pixels of a map: (B, C, H, W) float32 with the channels last in memory.
"""

from __future__ import annotations

import math

from torch import Tensor

from denoised.model.backends.native.kernels import QUERIES, Kernels
from denoised.model.backends.native.tiles import LANES


def layer_norm(kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of each pixel's channels, a multiple of LANES. weight, bias: (C,). Returns (B, C, H, W)."""
    batch, channels, height, width = x.shape
    out = kernels.empty(batch, channels, height, width)
    pointers = (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr())
    kernels.call("denoised_layer_norm", batch, *pointers, height * width, channels, eps)
    return out


def gated_gelu(kernels: Kernels, x: Tensor) -> Tensor:
    """value·GELU(gate). x: (B, 2·C, H, W), value and gate, C a multiple of LANES. Returns (B, C, H, W)."""
    batch, channels, height, width = x.shape
    out = kernels.empty(batch, channels // 2, height, width)
    kernels.call("denoised_gated_gelu", batch, x.data_ptr(), out.data_ptr(), height * width, channels // 2)
    return out


def attend_text(kernels: Kernels, q: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """softmax(q·kᵀ/√D)·v, D a multiple of LANES.

    q: (B, heads·D, H, W). keys: (B, heads·D·padded), for each head D rows of the M keys, padded with zeros to a
    multiple of LANES; values: (B, M·heads·D). Both are columns of one tensor. Returns (B, heads·D, H, W).
    """
    batch, channels, height, width = q.shape
    # M tokens of the text; D channels of a head.
    count, depth = values.shape[1] // channels, channels // heads
    assert keys.stride(0) == values.stride(0), "keys and values are columns of one tensor"
    out = kernels.empty(batch, channels, height, width)
    # One row of scores q·kᵀ for each of the queries that a thread holds at once.
    scratch = kernels.scratch(batch, heads, QUERIES, padded_count(count))
    kernels.call(
        "denoised_attend_text",
        batch,
        q.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        out.data_ptr(),
        scratch.data_ptr(),
        # The distance of two images in the rows of all attentions' keys and values.
        keys.stride(0),
        height * width,
        count,
        heads,
        depth,
        1.0 / math.sqrt(depth),
    )
    return out


def padded_count(count: int) -> int:
    """The number of keys, rounded up to whole vectors."""
    return -(-count // LANES) * LANES
