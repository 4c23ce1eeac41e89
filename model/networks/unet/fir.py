"""Halve or double an image through the filter (1, 3, 3, 1), as NCSN++ does against aliasing.

Source: Song et al. 2021 (arXiv:2011.13456), appendix H, which follows StyleGAN2. Plain elementwise sums in a
fixed order instead of a convolution: an image gets the same bits in a batch of any size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fir_downsample(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, H/2, W/2) through the filter (1, 3, 3, 1)/8 along each side, zeros outside.

    y_i = (x_{2i−1} + 3·x_{2i} + 3·x_{2i+1} + x_{2i+2})/8.
    """
    for dim in (2, 3):  # the filter is separable
        size = x.shape[dim]
        before, even, odd, after = (_shift(x, dim, by)[_every_second(dim, size)] for by in (-1, 0, 1, 2))
        x = (before + after + 3 * (even + odd)) / 8
    return x


def fir_upsample(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, 2H, 2W) through the filter (1, 3, 3, 1)/4 along each side, zeros outside.

    y_{2i} = (x_{i−1} + 3·x_i)/4 and y_{2i+1} = (3·x_i + x_{i+1})/4.
    """
    for dim in (2, 3):
        even = (_shift(x, dim, -1) + 3 * x) / 4
        odd = (3 * x + _shift(x, dim, 1)) / 4
        x = torch.stack([even, odd], dim=dim + 1).flatten(dim, dim + 1)  # interleave: y_0, y_1, y_2, …
    return x


def _shift(x: Tensor, dim: int, by: int) -> Tensor:
    """A tensor like x whose entry i along `dim` is entry i + by of x, zero where x has none."""
    missing = [0, 0, 0, 0]  # left, right, top, bottom
    missing[(0 if dim == 3 else 2) + (0 if by < 0 else 1)] = abs(by)
    size = x.shape[dim]
    padded = F.pad(x, missing)
    return padded.narrow(dim, max(by, 0), size)


def _every_second(dim: int, size: int) -> tuple[slice, ...]:
    return tuple(slice(0, size, 2) if d == dim else slice(None) for d in range(4))
