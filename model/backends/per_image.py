"""A text-conditioned U-Net, evaluated so that an image gets the same bits in a batch of any size.

PyTorch chooses its kernels by the shape of the whole batch. Here each image is a batch of one: the same kernels run on
the same shapes, whatever the neighbors are. At the sizes of latent models, one image keeps the cores of a CPU busy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from denoised.model.networks.text_unet import TextUNet


class PerImageTextUNet:
    """`TextUNet.forward` for each image by itself."""

    def __init__(self, unet: TextUNet) -> None:
        self._unet = unet

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, H, W); t: (B,); context: (B, M, cross_attention_dim). Returns (B, out_channels, H, W)."""
        rows = zip(x.split(1), t.split(1), context.split(1), strict=True)
        return torch.cat([self._unet(*row) for row in rows])
