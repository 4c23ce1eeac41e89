"""The loss and the batches of a class-conditional model in training.

This module knows no files and no progress bars; `model.training.run.training_run` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from denoised.model.diffusion.noise import level_tables
from denoised.model.diffusion.predictions import add_noise, training_target
from denoised.model.networks.unet.unet import UNet
from denoised.model.training.datasets.dataset import Dataset, to_unit
from denoised.model.training.learner import Learner, shuffled_indices, stratified_timesteps
from denoised.model.training.precision import choose_precision
from denoised.model.training.presets import unet_config
from denoised.model.training.training_config import TrainingConfig, validate
from denoised.model.training.weighting import loss_weights

TIMED_BATCH = 32  # of `choose_precision`


class Trainer(Learner):
    """A class-conditional U-Net in training.

    alpha, sigma: (T,) the noise schedule's tables.
    weights: (T,) the weight of each timestep in the loss.

    Raises:
        TrainingError: if the configuration is out of range or does not fit the data.
    """

    config: TrainingConfig
    net: UNet

    def __init__(self, config: TrainingConfig, dataset: Dataset, device: str = "cpu") -> None:
        validate(config)
        torch.manual_seed(config.seed)
        super().__init__(config, UNet(unet_config(config.preset, dataset, config.dropout)), device)
        self.dataset = dataset
        self.alpha, self.sigma = level_tables(config.schedule, self.device)
        self.weights = loss_weights(config.schedule, config.prediction_type, config.min_snr_gamma).to(self.device)
        self.amp_dtype = choose_precision(config.precision, self.net, self._timed_loss, self.device)

    def backward(self) -> float:
        """Accumulate the gradient of the batch's mean loss, part by part. Returns that loss."""
        parts = self.config.accumulate
        total: Tensor | float = 0.0
        for part in zip(*(tensor.chunk(parts) for tensor in self._draw_batch()), strict=True):
            # Gradients add up. The parts have one size, so the mean of their means is that of the batch.
            loss = self.loss(*(tensor.to(self.device) for tensor in part)) / parts
            loss.backward()
            total = total + loss.detach()
        return float(total)

    def loss(self, x0: Tensor, t: Tensor, labels: Tensor, epsilon: Tensor) -> Tensor:
        """The mean of w_t·‖f_θ(x_t, t, label) − target‖²/d over a batch (Ho et al. 2020, eq. 14).

        The target is ε, v = α_t·ε − σ_t·x_0 (Salimans & Ho 2022, arXiv:2202.00512, appendix D) or x_0.

        x0, epsilon: (B, C, H, W).
        t: (B,) timesteps.
        labels: (B,) class indices; K is the null class.
        """
        # (B,), as α_t and σ_t of x_t = α_t·x_0 + σ_t·ε.
        alpha, sigma = self.alpha[t], self.sigma[t]
        x = add_noise(x0, epsilon, alpha, sigma)
        with self.autocast():
            output = self.net(x, t, labels)
        # Outside of autocast: target and error in float32.
        target = training_target(x0, epsilon, alpha, sigma, self.config.prediction_type)
        squared = (output.to(target.dtype) - target).square().flatten(1).mean(dim=1)  # (B,)
        return (self.weights[t] * squared).mean()

    def _draw_batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x_0, t, labels, ε) of this step, on the CPU. Each image comes once per epoch."""
        config = self.config
        index = shuffled_indices(len(self.dataset), config.seed, self.images_seen, config.batch)
        # (B, C, H, W) uint8 → float32 in [−1, 1].
        x0 = to_unit(self.dataset.images[index])
        t = stratified_timesteps(config.batch, config.timesteps, self.generator)
        # Hiding labels trains the unconditional branch of guidance (Ho & Salimans 2022, arXiv:2207.12598, alg. 1).
        dropped = torch.rand(config.batch, generator=self.generator) < config.label_dropout
        labels = self.dataset.classes[index].masked_fill(dropped, len(self.dataset.labels))
        epsilon = torch.randn(x0.shape, generator=self.generator)
        if config.flip:
            mirrored = torch.rand(config.batch, generator=self.generator) < 0.5
            x0 = torch.where(mirrored.view(-1, 1, 1, 1), x0.flip(-1), x0)
        return x0, t, labels, epsilon

    def _timed_loss(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn((TIMED_BATCH, *self.dataset.images.shape[1:]), generator=generator).to(self.device)
        t = torch.full((TIMED_BATCH,), 500, device=self.device)
        labels = torch.zeros(TIMED_BATCH, dtype=torch.long, device=self.device)
        return self.net(x, t, labels).float().square().mean()
