"""What fine-tuning is trained on: latents and captions, encoded once when a run starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from denoised.model.checkpoints.digest import DIGITS
from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.training.datasets.captioned_folder import CaptionedPicture
from denoised.model.training.datasets.dataset import to_unit
from denoised.model.training.datasets.images import read_image


@dataclass(frozen=True)
class TuningData:
    """Pictures with captions.

    Attributes:
        latents: (N, C, h, w) float32, scaled for the U-Net.
        captions: N texts.
        digest: of the picture files and the captions.
    """

    latents: Tensor
    captions: tuple[str, ...]
    digest: str


@torch.no_grad()
def encode_latents(
    pictures: Sequence[CaptionedPicture],
    autoencoder: Autoencoder,
    size: tuple[int, int],
    background: tuple[int, int, int],
    advance: Callable[[int], None] = lambda count: None,
) -> TuningData:
    """Read and encode pictures one by one; a latent is the mean of its distribution.

    size: (width, height) that pictures are cropped and resized to.
    advance: called with the number of pictures that are newly done.

    Raises:
        DataError: for a picture that cannot be read.
    """
    device, latents, digest = next(autoencoder.parameters()).device, [], hashlib.sha256()
    for picture in pictures:
        # (1, 3, H, W) in [−1, 1].
        pixels = to_unit(read_image(picture.path, size, background)[None]).to(device)
        if autoencoder.config.in_channels == 1:
            pixels = pixels.mean(dim=1, keepdim=True)
        # (1, C, h, w) in the U-Net's scale.
        latents.append(autoencoder.config.scale(autoencoder.encode(pixels).mean).float().cpu())
        with picture.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest() + picture.caption.encode() + b"\0")
        advance(1)
    captions = tuple(picture.caption for picture in pictures)
    return TuningData(torch.cat(latents).contiguous(), captions, digest.hexdigest()[:DIGITS])
