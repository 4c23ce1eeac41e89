"""What a U-Net of latents sees next to them: a picture to edit, or the part of a picture that is kept."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoised.model.serving.pictures import from_uint8

EDIT, INPAINT = "edit", "inpaint"
WHITE = 128  # from this level on, a mask is white


class PictureEncoder(Protocol):
    """Encodes pixels (B, channels, H, W) in [−1, 1]."""

    def encode_pixels(self, pixels: Tensor, *, scaled: bool = True) -> Tensor:
        """Latents (B, C, h, w)."""
        ...


def input_kind(in_channels: int, latent_channels: int) -> str | None:
    """What the further input channels of a U-Net are: `edit` (a picture), `inpaint` (a mask and a picture), `start`
    (there are none); None if it takes something else."""
    further = {0: "start", latent_channels: EDIT, latent_channels + 1: INPAINT}
    return further.get(in_channels - latent_channels)


def blank_inputs(kind: str, latents: tuple[int, int, int]) -> Tensor:
    """(1, E, h, w) the inputs without a picture. latents: (C, h, w)."""
    channels, height, width = latents
    return torch.zeros(1, channels + (kind == INPAINT), height, width)


def picture_inputs(
    kind: str, encoder: PictureEncoder, image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8] | None
) -> Tensor:
    """(1, E, h, w) the inputs for a picture (H, W, channels) and a mask (H, W, 1).

    edit: latents that are not scaled (Brooks et al. 2023, arXiv:2211.09800, section 3.2). inpaint: the mask, 1 where
    the image is made anew, and the scaled latents of the picture, gray there. Both as diffusers' pipelines have them.
    """
    pixels = from_uint8(image[None])
    if kind == EDIT:
        return encoder.encode_pixels(pixels, scaled=False)
    assert mask is not None
    anew = torch.from_numpy(mask[..., 0] >= WHITE)  # (H, W)
    latents = encoder.encode_pixels(torch.where(anew, torch.zeros(()), pixels))
    rows, columns = anew.shape[0] // latents.shape[2], anew.shape[1] // latents.shape[3]
    small = anew[::rows, ::columns].to(latents)[None, None]  # of each block, the upper left pixel
    return torch.cat([small, latents], dim=1)
