"""Latents as pictures: the autoencoder for finished images, one linear map for previews."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.serving.pictures import to_uint8
from denoised.model.serving.protocol import Pictures

# (red, green, blue) of each latent channel of Stable Diffusion 1, in −1 … 1, found by regression:
# https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204
STABLE_DIFFUSION_RGB = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))
# The same of Stable Diffusion XL, and in the last row the color of zero latents: published for 0 … 255 in
# https://huggingface.co/blog/TimothyAlexisVass/explaining-the-sdxl-latent-space
_XL_LEVELS = ((60, 60, 60), (-60, -5, 10), (25, 15, -5), (-70, -50, -35))
_XL_OFFSET = (150, 140, 130)
STABLE_DIFFUSION_XL_RGB = tuple(
    (red / 127.5, green / 127.5, blue / 127.5)
    for red, green, blue in (*_XL_LEVELS, [level - 127.5 for level in _XL_OFFSET])
)
# Bytes for decoding one image: enough for 1024×1024 pixels of Stable Diffusion. Larger ones are decoded in tiles. The
# bytes of a picture depend on it, so it is the same on every machine.
DECODE_BYTES = 5 * 1024**3
FLOAT_BYTES = 4  # the autoencoder is in float32, as `force_upcast` asks
LIVE_MAPS = 5  # feature maps of the largest size that exist at once; 3.9 to 5.2 were measured


class LatentPictures:
    """Decodes latents. Not for two threads at a time: the publisher's thread owns it."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        latent_rgb: Sequence[tuple[float, float, float]],
        decode_bytes: int = DECODE_BYTES,
    ) -> None:
        """latent_rgb: see `CardFile`; repeated if there are more channels."""
        self._autoencoder = autoencoder.eval().requires_grad_(False)
        self._decode_bytes = decode_bytes
        self._device = next(autoencoder.parameters()).device
        self._rgb = _preview_map(autoencoder.config.latent_channels, latent_rgb)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Pictures:
        """(B, C, h, w) → (B, H, W, channels) bytes.

        Each image is decoded by itself, so that its bytes do not depend on the others, and the memory not on their
        number.
        """
        return to_uint8(torch.cat([self._decode(each.to(self._device)) for each in latents.split(1)]))

    @torch.inference_mode()
    def preview(self, latents: Tensor) -> Pictures:
        """(B, C, h, w) → (B, h, w, 3) bytes: one pixel for each latent."""
        factors, offset = self._rgb[:-1], self._rgb[-1]  # (C, 3), (3,)
        rgb = torch.einsum("bchw,cr->brhw", latents.float().cpu(), factors) + offset[:, None, None]  # (B, 3, h, w)
        return to_uint8(rgb)

    def _decode(self, latents: Tensor) -> Tensor:
        autoencoder, height, width = self._autoencoder, *latents.shape[-2:]
        needed = LIVE_MAPS * FLOAT_BYTES * autoencoder.config.largest_map(height, width)
        # z = latents/scaling_factor + shift_factor: the inverse of what the encoder's output went through.
        unscaled = autoencoder.config.unscale(latents.float())
        return autoencoder.decode(unscaled, tiled=needed > self._decode_bytes)


def published_rgb(*, is_xl: bool) -> Sequence[tuple[float, float, float]]:
    """The published colors of the latents of a family."""
    return STABLE_DIFFUSION_XL_RGB if is_xl else STABLE_DIFFUSION_RGB


def _preview_map(channels: int, latent_rgb: Sequence[tuple[float, float, float]]) -> Tensor:
    """(C + 1, 3): the color of each latent channel, then that of zero latents: none if there are no rows left."""
    offset = latent_rgb[channels] if len(latent_rgb) == channels + 1 else (0.0, 0.0, 0.0)
    # A card may name fewer colors than channels: they repeat.
    return torch.tensor([*(latent_rgb[channel % len(latent_rgb)] for channel in range(channels)), offset])
