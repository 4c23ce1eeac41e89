"""One training step, the loss, and all the state a step depends on.

A `Trainer` is its state: weights, their moving average, the optimizer's moments, the random
generators and the step count. A run that loads a saved state continues as if it had never
stopped. This module knows no files and no progress bars; `model.training.training_run` does.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from denoised.model.diffusion.noise import level_tables
from denoised.model.diffusion.predictions import add_noise, training_target
from denoised.model.errors import TrainingError
from denoised.model.networks.unet import UNet
from denoised.model.training.dataset import Dataset, to_unit
from denoised.model.training.precision import choose_precision
from denoised.model.training.presets import unet_config
from denoised.model.training.training_config import TrainingConfig, validate
from denoised.model.training.weighting import loss_weights


class Trainer:
    """The state of a run between two steps.

    net: the network that is trained.
    ema: its weights averaged over the steps, by name; these are sampled from and exported.
    step: number of steps done.
    alpha, sigma: (T,) the noise schedule's tables.
    weights: (T,) the weight of each timestep in the loss.
    amp_dtype: dtype of the matrix products.

    Raises:
        TrainingError: if the configuration is out of range or does not fit the data.
    """

    def __init__(self, config: TrainingConfig, dataset: Dataset, device: str = "cpu") -> None:
        validate(config)
        self.config = config
        self.dataset = dataset
        self.device = torch.device(device)
        self.step = 0
        torch.manual_seed(config.seed)
        self.net = UNet(unet_config(config.preset, dataset, config.dropout)).to(self.device)
        self.ema = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=config.learning_rate,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.alpha, self.sigma = level_tables(config.schedule, self.device)
        self.weights = loss_weights(config.schedule, config.prediction_type, config.min_snr_gamma).to(self.device)
        self.amp_dtype = choose_precision(config.precision, self.net, dataset, self.device)

    @property
    def images_seen(self) -> int:
        return self.step * self.config.batch

    def train_step(self) -> tuple[float, float]:
        """One optimizer step. Returns (loss, gradient norm before clipping).

        Raises:
            TrainingError: if the gradient is not finite; the weights are then unchanged.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step)
        self.net.train()
        loss = self._backward()
        norm = float(nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient of step {self.step:,} is {norm}: --resume from the newest checkpoint with a lower "
                f"--learning-rate than {self.config.learning_rate}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._update_average()
        return loss, norm

    def _backward(self) -> float:
        """Accumulate the gradient of the batch's mean loss, part by part. Returns that loss."""
        parts = self.config.accumulate
        total: Tensor | float = 0.0
        for part in zip(*(tensor.chunk(parts) for tensor in self._draw_batch()), strict=True):
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
        alpha, sigma = self.alpha[t], self.sigma[t]
        x = add_noise(x0, epsilon, alpha, sigma)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype != torch.float32):
            output = self.net(x, t, labels)
        target = training_target(x0, epsilon, alpha, sigma, self.config.prediction_type)
        squared = (output.to(target.dtype) - target).square().flatten(1).mean(dim=1)  # (B,)
        return (self.weights[t] * squared).mean()

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, as named tensors on the CPU."""
        state = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        state |= {f"ema.{name}": value for name, value in self.ema.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        state["generator"] = self.generator.get_state()
        state["torch_rng"] = torch.get_rng_state()
        state["step"] = torch.tensor(self.step)
        state["bfloat16"] = torch.tensor(self.amp_dtype == torch.bfloat16)
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from the `state()` of a run with the same configuration.

        Raises:
            TrainingError: if the tensors do not fit this network.
        """
        self._load_weights(_with_prefix(state, "net."), "the checkpoint")
        self.ema = {name: value.to(self.device).clone() for name, value in _with_prefix(state, "ema.").items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _with_prefix(state, "optimizer.").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        self.step = int(state["step"])
        if self.config.precision == "auto" and "bfloat16" in state:  # as measured when the run began
            self.amp_dtype = torch.bfloat16 if state["bfloat16"] else torch.float32

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Start from the weights of a trained network instead of random ones.

        Raises:
            TrainingError: if the tensors do not fit this network.
        """
        self._load_weights(weights, "the model to start from")
        self.ema = {name: value.detach().clone() for name, value in self.net.state_dict().items()}

    def _load_weights(self, weights: dict[str, Tensor], source: str) -> None:
        try:
            self.net.load_state_dict(weights)
        except RuntimeError as error:
            raise TrainingError(f"{source} is of another network: {str(error).splitlines()[-1].strip()}") from error

    def _draw_batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x_0, t, labels, ε) of this step, on the CPU. Each image comes once per epoch."""
        config = self.config
        index = shuffled_indices(len(self.dataset), config.seed, self.images_seen, config.batch)
        x0 = to_unit(self.dataset.images[index])
        # t is uniform and stratified over the batch: (i + u)/B with one u for all images, which lowers the variance
        # of the loss (Kingma et al. 2021, arXiv:2107.00630, appendix I.1).
        offset = (torch.arange(config.batch) + torch.rand((), generator=self.generator)) / config.batch
        t = (offset * config.timesteps).long().clamp(max=config.timesteps - 1)
        # Hiding labels trains the unconditional branch of guidance (Ho & Salimans 2022, arXiv:2207.12598, alg. 1).
        dropped = torch.rand(config.batch, generator=self.generator) < config.label_dropout
        labels = self.dataset.classes[index].masked_fill(dropped, len(self.dataset.labels))
        epsilon = torch.randn(x0.shape, generator=self.generator)
        if config.flip:
            mirrored = torch.rand(config.batch, generator=self.generator) < 0.5
            x0 = torch.where(mirrored.view(-1, 1, 1, 1), x0.flip(-1), x0)
        return x0, t, labels, epsilon

    @torch.no_grad()
    def _update_average(self) -> None:
        """ema ← d·ema + (1 − d)·weights; buffers are copied, since the mean of buffers belongs to no step."""
        decay = ema_decay(self.config.ema_decay, self.step)
        learned = dict(self.net.named_parameters())
        for name, value in self.net.state_dict().items():
            if name in learned:
                self.ema[name].lerp_(value, 1 - decay)
            else:
                self.ema[name].copy_(value)


def ema_decay(decay: float, step: int) -> float:
    """The decay after `step` steps: min(d, (1 + n)/(10 + n)), as in TensorFlow's ExponentialMovingAverage.

    This warm-up keeps the random initial weights from dominating the average of a short run.
    """
    return min(decay, (1 + step) / (10 + step))


def shuffled_indices(count: int, seed: int, start: int, batch: int) -> Tensor:
    """Positions start … start + batch − 1 of an endless sequence of shuffled epochs over `count` images: (batch,).

    They depend on nothing but the arguments, so a resumed run sees the images in the same order.
    """
    positions = range(start, start + batch)
    return torch.stack([_epoch(count, seed, position // count)[position % count] for position in positions])


@lru_cache(maxsize=2)
def _epoch(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))


def _with_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
