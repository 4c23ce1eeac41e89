"""Latents as pictures and pictures as latents: the autoencoder, and one linear map for previews."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from denoised.model.backends.fixed_batch import fill
from denoised.model.backends.numerics import PACKED, PER_IMAGE, fixed_batches
from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.serving.pictures import from_uint8, to_uint8
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
# Bytes for decoding several images at once. Beyond a processor's cache a batch takes longer than its images one by one
# (docs/decisions.md has the measurement).
BATCH_BYTES = 4 * 1024**2
# Pictures of every batch on a CUDA device, where the bits of a picture depend on that number: a lone picture takes as
# long as so many. Pictures so large that a batch needs more than FIXED_BATCH_BYTES are decoded one by one.
FIXED_BATCH = 8
FIXED_BATCH_BYTES = 1024**3
FLOAT_BYTES = 4  # the autoencoder is in float32, as `force_upcast` asks
LIVE_MAPS = 5  # feature maps of the largest size that exist at once; 3.9 to 5.2 were measured


class LatentPictures:
    """Decodes and encodes latents. `decode` is not for two threads at a time: the decoder's thread owns it, and the job
    fetcher's thread owns `encode`."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        latent_rgb: Sequence[tuple[float, float, float]],
        decode_bytes: int = DECODE_BYTES,
        batch_bytes: int = BATCH_BYTES,
        *,
        whole_batches: bool = False,
        in_fixed_batches: bool = False,
    ) -> None:
        """latent_rgb: see `CardFile`; repeated if there are more channels.

        decode_bytes: for one image; batch_bytes: for several at once.
        whole_batches: the decoder's kernels give an image the same bits in a batch of any size (`pack_decoder`).
        in_fixed_batches: they do in batches of FIXED_BATCH images (`decodes_fixed_batches`).
        """
        self._device = next(autoencoder.parameters()).device
        self._autoencoder = autoencoder.eval().requires_grad_(False)
        self._decode_bytes = decode_bytes
        self._batch_bytes = batch_bytes
        self._whole_batches = whole_batches
        self._fixed_batches = in_fixed_batches
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._rgb = _preview_map(autoencoder.config.latent_channels, latent_rgb)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Pictures:
        """(B, C, h, w) → (B, H, W, channels) bytes.

        An image's bytes do not depend on the others: the kernels do not, or each image is decoded by itself.
        """
        parts = latents.split(self.limit(*latents.shape[-2:]))
        with self._on_own_stream():
            return to_uint8(torch.cat([self._decode(part.to(self._device)) for part in parts]))

    def encode(self, pictures: Pictures) -> Tensor:
        """(B, H, W, channels) bytes → (B, C, h, w): the mean of the encoder's distribution, scaled, one by one.

        The mean, not a sample: it is the same for every seed, and the nearest to the picture.
        """
        return self.encode_pixels(from_uint8(pictures))

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor, *, scaled: bool = True) -> Tensor:
        """`encode` of pixels (B, channels, H, W) in [−1, 1]. scaled: as the U-Net denoises them."""
        pixels = pixels.to(self._device)
        height, width = (side // self._autoencoder.config.downscale for side in pixels.shape[-2:])
        tiled = self._needed_bytes(height, width) > self._decode_bytes
        encoded = torch.cat([self._autoencoder.encode(each, tiled=tiled).mean for each in pixels.split(1)])
        return self._autoencoder.config.scale(encoded) if scaled else encoded

    def limit(self, height: int, width: int) -> int:
        """How many latents of this size are decoded at once, at least 1."""
        needed = self._needed_bytes(height, width)
        if self._fixed_batches:
            return FIXED_BATCH if FIXED_BATCH * needed <= FIXED_BATCH_BYTES else 1
        return max(1, self._batch_bytes // needed) if self._whole_batches else 1

    @property
    def kernels(self) -> str:
        """The name of the decoder's kernels in `numerics`."""
        if self._fixed_batches:
            return fixed_batches(FIXED_BATCH)
        return PACKED if self._whole_batches else PER_IMAGE

    @contextmanager
    def _on_own_stream(self) -> Iterator[None]:
        """On a CUDA device: kernels begin after those that make the latents, and later ones of the engine do not wait
        for them."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def _needed_bytes(self, height: int, width: int) -> int:
        """For decoding one image of this size in one piece."""
        return LIVE_MAPS * FLOAT_BYTES * self._autoencoder.config.largest_map(height, width)

    @torch.inference_mode()
    def preview(self, latents: Tensor) -> Pictures:
        """(B, C, h, w) → (B, h, w, 3) bytes: one pixel for each latent."""
        factors, offset = self._rgb[:-1], self._rgb[-1]  # (C, 3), (3,)
        rgb = torch.einsum("bchw,cr->brhw", latents.float().cpu(), factors) + offset[:, None, None]  # (B, 3, h, w)
        return to_uint8(rgb)

    def _decode(self, latents: Tensor) -> Tensor:
        # z = latents/scaling_factor + shift_factor: the inverse of what the encoder's output went through.
        unscaled = self._autoencoder.config.unscale(latents.float())
        if self._fixed_batches:
            unscaled = fill(unscaled, self.limit(*latents.shape[-2:]))
        tiled = self._needed_bytes(*latents.shape[-2:]) > self._decode_bytes
        return self._autoencoder.decode(unscaled, tiled=tiled)[: len(latents)]


def published_rgb(*, is_xl: bool) -> Sequence[tuple[float, float, float]]:
    """The published colors of the latents of a family."""
    return STABLE_DIFFUSION_XL_RGB if is_xl else STABLE_DIFFUSION_RGB


def _preview_map(channels: int, latent_rgb: Sequence[tuple[float, float, float]]) -> Tensor:
    """(C + 1, 3): the color of each latent channel, then that of zero latents: none if there are no rows left."""
    offset = latent_rgb[channels] if len(latent_rgb) == channels + 1 else (0.0, 0.0, 0.0)
    # A card may name fewer colors than channels: they repeat.
    return torch.tensor([*(latent_rgb[channel % len(latent_rgb)] for channel in range(channels)), offset])
