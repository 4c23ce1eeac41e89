"""The first stage: the loss and the batches of an autoencoder in training.

This module knows no files and no progress bars.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from denoised.model.networks.autoencoder.autoencoder import Autoencoder, LatentDistribution
from denoised.model.training.datasets.dataset import to_unit
from denoised.model.training.emoji.emoji_pictures import SIDE, EmojiPictures
from denoised.model.training.learner import Learner, shuffled_indices
from denoised.model.training.precision import choose_precision
from denoised.model.training.text_to_image.text_presets import autoencoder_config
from denoised.model.training.text_to_image.text_training_config import AutoencoderTrainingConfig

MEASURED_PICTURES = 64
TIMED_BATCH = 16


class ReconstructionNet(nn.Module):
    """Encode, draw a latent, decode: one forward pass."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, LatentDistribution]:
        distribution = self.autoencoder.encode(pixels)
        # z = μ + σ·noise keeps the draw differentiable (Kingma & Welling 2014, arXiv:1312.6114, section 2.4).
        return self.autoencoder.decode(distribution.sample(noise)), distribution


class AutoencoderTrainer(Learner):
    """An autoencoder in training.

    trained: the combinations that may be trained on; held_out: the others.
    """

    config: AutoencoderTrainingConfig
    net: ReconstructionNet
    measured = ("held_out_psnr",)

    def __init__(
        self,
        config: AutoencoderTrainingConfig,
        pictures: EmojiPictures,
        held_out: npt.NDArray[np.bool_],
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(config.seed)
        super().__init__(config, ReconstructionNet(Autoencoder(autoencoder_config(config.shape, SIDE))), device)
        self.pictures = pictures
        self.trained, self.held_out = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        self.amp_dtype = choose_precision(config.precision, self.net, self._timed_loss, self.device)

    def backward(self) -> float:
        """Accumulate the gradient of the batch's mean loss, and return that loss."""
        loss = self.loss(*self._draw_batch())
        loss.backward()
        return float(loss.detach())

    def loss(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Mean absolute error, of pixels and of their edges, and the divergence of the latents.

        Edges count because the eye sees blur before it sees a wrong shade; there is no network of perception in it.
        pixels: (B, 3, H, W); noise: (B, C, H/f, W/f) standard normal.
        """
        with self.autocast():
            output, distribution = self.net(pixels, noise)
        error = output.float() - pixels  # (B, 3, H, W)
        # Differences of neighbors in a row, (B, 3, H, W − 1), and in a column, (B, 3, H − 1, W).
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        return error.abs().mean() + self.config.edge_weight * edges + self.config.kl_weight * _divergence(distribution)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The signal-to-noise ratio of held-out pictures in dB, from the averaged weights: 10·log10(255²/MSE)."""
        original = self.held_out_pictures(MEASURED_PICTURES).float()
        restored = self.reconstruct(original.to(torch.uint8)).float()
        # In units of a byte; the floor stands for 78 dB.
        error = (original - restored).square().mean().clamp(min=1e-3)
        return {"held_out_psnr": float(10 * torch.log10(255**2 / error))}

    def held_out_pictures(self, count: int) -> Tensor:
        """Pictures that are not trained on, always the same ones: (count, 3, H, W) uint8."""
        return self.pictures.on_colors(self.held_out[:: max(1, len(self.held_out) // count)][:count])

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8, encoded and decoded again by the averaged weights."""
        pixels = to_unit(images).to(self.device)
        noise = torch.zeros(self._latent_shape(len(pixels)), device=self.device)
        # Zero noise: the mean of the latents. The averaged weights are used without a second network.
        output, _ = functional_call(self.net, self.ema, (pixels, noise))
        return ((output.cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def averaged_autoencoder(self) -> Autoencoder:
        """A new network with the averaged weights."""
        made = Autoencoder(self.net.autoencoder.config).to(self.device)
        made.load_state_dict({name.removeprefix("autoencoder."): value for name, value in self.ema.items()})
        return made.eval().requires_grad_(False)

    def _draw_batch(self) -> tuple[Tensor, Tensor]:
        """Pixels and latent noise of this step. Mirroring doubles the pictures: here no words belong to them."""
        index = shuffled_indices(len(self.trained), self.config.seed, self.images_seen, self.batch).numpy()
        pixels = to_unit(self.pictures.on_colors(self.trained[index]))
        mirrored = torch.rand(self.batch, generator=self.generator) < 0.5
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        noise = torch.randn(self._latent_shape(self.batch), generator=self.generator)
        return pixels.to(self.device), noise.to(self.device)

    def _timed_loss(self) -> Tensor:
        pixels = torch.zeros(TIMED_BATCH, 3, SIDE, SIDE, device=self.device)
        output, _ = self.net(pixels, torch.zeros(self._latent_shape(TIMED_BATCH), device=self.device))
        return output.float().square().mean()

    def _latent_shape(self, count: int) -> tuple[int, int, int, int]:
        config = self.net.autoencoder.config
        return count, config.latent_channels, SIDE // config.downscale, SIDE // config.downscale


def _divergence(distribution: LatentDistribution) -> Tensor:
    """The mean over components of KL(N(μ, σ²) ‖ N(0, 1)) = (μ² + σ² − 1 − log σ²)/2."""
    mean, log_variance = distribution.mean.float(), distribution.log_variance.float()
    return (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
