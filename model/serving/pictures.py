"""Pixels to bytes, as diffusers rounds them."""

from __future__ import annotations

import torch
from torch import Tensor

from denoised.model.serving.protocol import Pictures


def to_uint8(pixels: Tensor) -> Pictures:
    """(B, C, H, W) in [−1, 1] → (B, H, W, C) bytes, (x + 1)·127.5 rounded half to even, as diffusers does."""
    rounded = ((pixels.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).numpy()
