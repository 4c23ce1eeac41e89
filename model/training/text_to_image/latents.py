"""The latents of all pictures, encoded once, and what is computed from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.training.datasets.dataset import to_unit
from denoised.model.training.emoji.emoji_pictures import EmojiPictures

ENCODED_BATCH = 64
SAMPLED_PICTURES = 4_096  # for standard deviations and the preview

Float16 = npt.NDArray[np.float16]


@torch.no_grad()
def normalize_latents(autoencoder: Autoencoder, pictures: EmojiPictures, combinations: npt.NDArray[np.int64]) -> None:
    """Change the autoencoder so that each latent channel has mean 0 and standard deviation 1; it decodes as before.

    The 1×1 convolutions after the encoder and before the decoder take up the mean and the deviation of each channel,
    so `scaling_factor`, which is one number for all channels in diffusers, becomes 1.

    combinations: of the pictures that mean and deviation are taken from.
    """
    assert autoencoder.quant_conv is not None, "the normalization is part of the 1×1 convolutions"
    assert autoencoder.post_quant_conv is not None, "the normalization is part of the 1×1 convolutions"
    latents = encode_combinations(autoencoder, pictures, _spread(combinations)).float()  # (B, C, H, W)
    std, mean = torch.std_mean(latents, dim=(0, 2, 3))  # (C,)
    std, mean = std.clamp(min=1e-6), mean
    before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
    assert before.bias is not None
    assert after.bias is not None
    channels = len(std)
    # z' = (z − μ)/s has the mean (m − μ)/s and the log-variance log σ² − 2·log s.
    before.weight[:channels] /= std.view(-1, 1, 1, 1)
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.bias[channels:] -= 2 * std.log()
    # W·z + b = W·(s·z' + μ) + b.
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std.view(1, -1, 1, 1)
    autoencoder.config = dataclasses.replace(autoencoder.config, scaling_factor=1.0)


@torch.no_grad()
def encode_combinations(
    autoencoder: Autoencoder,
    pictures: EmojiPictures,
    combinations: npt.NDArray[np.int64],
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """The means of the latents of combinations: (B, C, H, W) float16.

    advance: called with the number of pictures that are newly done.
    """
    device, parts = next(autoencoder.parameters()).device, []
    for start in range(0, len(combinations), ENCODED_BATCH):
        pixels = to_unit(pictures.on_colors(combinations[start : start + ENCODED_BATCH])).to(device)
        parts.append(autoencoder.encode(pixels).mean.half().cpu())
        advance(len(pixels))
    return torch.cat(parts)


def save_latents(path: Path, latents: Tensor) -> None:
    """Write latents as a numpy file that is mapped into memory, not read."""
    write_atomically(path, lambda temporary: _save_array(temporary, latents.numpy()))


def load_latents(path: Path) -> Float16:
    """The latents that `save_latents` wrote: (N·C, channels, H, W), one for each combination."""
    latents: Float16 = np.load(path, mmap_mode="r")
    return latents


def fit_preview(latents: Float16, pictures: EmojiPictures, combinations: npt.NDArray[np.int64]) -> list[list[float]]:
    """The linear map from latents to small pictures, by least squares: one row for each channel, then the offset.

    The color in [−1, 1] of the pixels that a latent covers is about (z, 1)·rows; each row has three numbers.
    """
    chosen = _spread(combinations)
    # Least squares in float64 over B·h·w latents.
    inputs = torch.from_numpy(latents[chosen].astype(np.float32))  # (B, C, h, w)
    pixels = to_unit(pictures.on_colors(chosen))
    targets = torch.nn.functional.adaptive_avg_pool2d(pixels, (inputs.shape[-2], inputs.shape[-1]))  # (B, 3, h, w)
    x = inputs.permute(0, 2, 3, 1).flatten(0, 2).double()  # (B·h·w, C)
    y = targets.permute(0, 2, 3, 1).flatten(0, 2).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.double)], dim=1)
    rows: list[list[float]] = torch.linalg.lstsq(x, y).solution.tolist()
    return [[round(value, 5) for value in row] for row in rows]


def _spread(combinations: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """About `SAMPLED_PICTURES` of the combinations, evenly spread and of all colors."""
    step = max(1, len(combinations) // SAMPLED_PICTURES)
    # An odd step: an even one would leave out every second of the twelve colors.
    return combinations[:: step + (step % 2 == 0)]


def _save_array(path: Path, array: npt.NDArray[np.generic]) -> None:
    with path.open("wb") as file:  # given a path, numpy appends .npy to it
        np.save(file, array)
