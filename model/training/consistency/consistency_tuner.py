"""The loss and the batches of a model that learns where its teacher's trajectories end.

This module knows no files and no progress bars; `model.training.run.training_run` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from denoised.model.diffusion.predictions import estimate_from_output
from denoised.model.networks.unet.unet import UNet
from denoised.model.training.consistency.consistency_config import ConsistencyConfig
from denoised.model.training.consistency.trajectories import JumpLevels, Trajectories
from denoised.model.training.learner import Learner, shuffled_indices
from denoised.model.training.precision import choose_precision

HUBER = 0.00054  # c of a root mean square; the source has .00054·√d of a norm over d numbers


class ConsistencyTuner(Learner):
    """A U-Net that learns f(x_t, t) = x_0, the end of the teacher's trajectory through x_t.

    net: starts from the teacher's weights, and predicts what the teacher does.
    """

    config: ConsistencyConfig
    net: UNet

    def __init__(
        self,
        config: ConsistencyConfig,
        unet: UNet,
        prediction_type: str,
        levels: JumpLevels,
        trajectories: Trajectories,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(config.seed)
        super().__init__(config, unet.train().requires_grad_(True), device)
        self.levels = levels
        self.trajectories = trajectories
        self._prediction_type = prediction_type
        self._t, self._alpha, self._sigma = (
            torch.from_numpy(table).float().to(self.device) for table in (levels.t, levels.alpha, levels.sigma)
        )
        self.amp_dtype = choose_precision(config.precision, self.net, self._timed_loss, self.device)

    def backward(self) -> float:
        """Accumulate the gradient of the batch's mean loss, and return that loss."""
        loss = self.loss(self._draw_batch())
        loss.backward()
        return float(loss.detach())

    def loss(self, jumps: Tensor) -> Tensor:
        """The mean of √(‖f_θ(x_t, t) − x_0‖²/d + c²) − c, the pseudo-Huber metric (Song & Dhariwal 2023,
        arXiv:2310.14189, section 3.3).

        jumps: (B,), trajectory k at level l has index k·L + l.
        """
        trajectory, level = jumps // len(self.levels), jumps % len(self.levels)
        x = self.trajectories.states[trajectory, level].to(self.device, torch.float32)
        x0 = self.trajectories.ends[trajectory].to(self.device, torch.float32)
        squared = (self.jump(x, level, self.trajectories.labels[trajectory]) - x0).square().flatten(1).mean(dim=1)
        return ((squared + HUBER**2).sqrt() - HUBER).mean()

    def jump(self, x: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        """f_θ: x (B, C, H, W) at levels (B,) by index, with labels (B,) → x̂_0 (B, C, H, W)."""
        level = level.to(self.device)
        label = labels.to(self.device) if self.net.class_embedding is not None else None
        with self.autocast():
            output = self.net(x, self._t[level], label)
        # Outside of autocast: x̂_0 and its error in float32. A learned variance has C more channels.
        mean = output[:, : x.shape[1]].float()
        return estimate_from_output(mean, x, self._alpha[level], self._sigma[level], self._prediction_type).x0

    def _draw_batch(self) -> Tensor:
        """Each jump comes once per epoch."""
        count = len(self.trajectories) * len(self.levels)
        return shuffled_indices(count, self.config.seed, self.images_seen, self.config.batch)

    def _timed_loss(self) -> Tensor:
        return self.loss(torch.arange(self.config.batch) % (len(self.trajectories) * len(self.levels)))
