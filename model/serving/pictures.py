"""Pixels to bytes and back, as diffusers rounds them."""

from __future__ import annotations

import torch
from torch import Tensor

from denoised.model.serving.protocol import Pictures


def to_uint8(pixels: Tensor) -> Pictures:
    """(B, C, H, W) in [−1, 1] → (B, H, W, C) bytes, (x + 1)·127.5 rounded half to even, as diffusers does."""
    rounded = ((pixels.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).numpy()


def from_uint8(pictures: Pictures) -> Tensor:
    """(B, H, W, C) bytes → (B, C, H, W) in [−1, 1]: the inverse of `to_uint8`, which returns the same bytes."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().contiguous() / 255 * 2 - 1
