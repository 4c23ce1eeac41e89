"""Training: the loss, one step of it, and everything a step depends on.

A `Trainer` is exactly its state: weights, their moving average, the optimiser's moments, the
generators and the number of steps done. Saving that and loading it again continues the run
as if it had never stopped. Files and progress bars are `model.training.runs`' business.
"""

from __future__ import annotations

import math
from functools import lru_cache
from time import perf_counter

import torch
from torch import Tensor, nn

from denoised.model.diffusion.noise import level_tables
from denoised.model.diffusion.predictions import add_noise, training_target
from denoised.model.errors import TrainingError
from denoised.model.networks.unet import UNet
from denoised.model.training.data import Dataset, to_unit
from denoised.model.training.recipe import TrainingConfig, check, unet_config
from denoised.model.training.weighting import loss_weights


class Trainer:
    """A run between two steps.

    Raises:
        TrainingError: when the configuration is out of range, or does not fit the data.
    """

    def __init__(self, config: TrainingConfig, dataset: Dataset, device: str = "cpu") -> None:
        check(config)
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
        """One optimiser step. Returns (loss, gradient norm before clipping).

        Raises:
            TrainingError: when there is no finite gradient to follow; weights are then as they were.
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
        self._average()
        return loss, norm

    def _backward(self) -> float:
        """Leave the gradient of the whole batch's mean loss in the weights, part by part. Returns that loss."""
        parts = self.config.accumulate
        total = torch.zeros((), device=self.device)
        for part in zip(*(drawn.chunk(parts) for drawn in self._draw_batch()), strict=True):
            loss = self.loss(*(tensor.to(self.device) for tensor in part)) / parts
            loss.backward()
            total += loss.detach()
        return float(total)

    def loss(self, x0: Tensor, t: Tensor, labels: Tensor, epsilon: Tensor) -> Tensor:
        """E w_t·‖f_θ(x_t, t, label) − target‖²/d (Ho et al. 2020, eq. 14; the target is ε, v or x_0)."""
        alpha, sigma = self.alpha[t], self.sigma[t]
        x = add_noise(x0, epsilon, alpha, sigma)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype != torch.float32):
            output = self.net(x, t, labels)
        target = training_target(x0, epsilon, alpha, sigma, self.config.prediction_type)
        squared = (output.float() - target).square().flatten(1).mean(dim=1)  # (B,)
        return (self.weights[t] * squared).mean()

    def state(self) -> dict[str, Tensor]:
        """Every number that the next step depends on, as named tensors."""
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
        """Go on from `state()` of a run of the same configuration.

        Raises:
            TrainingError: when the tensors are not those of this network.
        """
        self._load_weights(_under(state, "net."), "the checkpoint")
        self.ema = {name: value.to(self.device).clone() for name, value in _under(state, "ema.").items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(state, "optimizer.").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        self.step = int(state["step"])
        if self.config.precision == "auto" and "bfloat16" in state:  # measured when the run began
            self.amp_dtype = torch.bfloat16 if state["bfloat16"] else torch.float32

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begin with a trained network's weights instead of random ones.

        Raises:
            TrainingError: when the tensors are not those of this network.
        """
        self._load_weights(weights, "the model to start from")
        self.ema = {name: value.detach().clone() for name, value in self.net.state_dict().items()}

    def _load_weights(self, weights: dict[str, Tensor], whose: str) -> None:
        try:
            self.net.load_state_dict(weights)
        except RuntimeError as error:
            raise TrainingError(f"{whose} is of another network: {str(error).splitlines()[-1].strip()}") from error

    def _draw_batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x_0, t, labels, ε) of this step, on the CPU. Every image has its turn once an epoch."""
        config = self.config
        index = order_of(len(self.dataset), config.seed, self.images_seen, config.batch)
        x0 = to_unit(self.dataset.images[index])
        # Uniform t, stratified over the batch (Kingma et al. 2021, arXiv:2107.00630, appendix I.1).
        offset = (torch.arange(config.batch) + torch.rand((), generator=self.generator)) / config.batch
        t = (offset * config.timesteps).long().clamp(max=config.timesteps - 1)
        dropped = torch.rand(config.batch, generator=self.generator) < config.label_dropout
        labels = self.dataset.classes[index].masked_fill(dropped, len(self.dataset.labels))
        epsilon = torch.randn(x0.shape, generator=self.generator)
        if config.flip:
            mirrored = torch.rand(config.batch, generator=self.generator) < 0.5
            x0 = torch.where(mirrored.view(-1, 1, 1, 1), x0.flip(-1), x0)
        return x0, t, labels, epsilon

    @torch.no_grad()
    def _average(self) -> None:
        """Weights are averaged; buffers are copied, since a mean of them is no buffer of any step."""
        decay = ema_decay(self.config.ema_decay, self.step)
        learned = dict(self.net.named_parameters())
        for name, value in self.net.state_dict().items():
            if name in learned:
                self.ema[name].lerp_(value, 1 - decay)
            else:
                self.ema[name].copy_(value)


def ema_decay(decay: float, step: int) -> float:
    """The averaging factor after `step` steps: min(d, (1 + n)/(10 + n)), so that it is not held to its start."""
    return min(decay, (1 + step) / (10 + step))


def order_of(count: int, seed: int, start: int, batch: int) -> Tensor:
    """The images start … start + batch of an endless sequence of shuffled epochs."""
    places = range(start, start + batch)
    return torch.stack([_shuffled(count, seed, place // count)[place % count] for place in places])


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def choose_precision(wanted: str, net: UNet, dataset: Dataset, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products; "auto" times one forward and backward pass of each.

    float16 is not among them: its gradients underflow without a scaled loss, and wherever it is fast
    (GPUs from 2020 on) bfloat16 is as fast.
    """
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if wanted != "auto":
        return named[wanted]
    return min(named.values(), key=lambda dtype: _pass_seconds(dtype, net, dataset, device))


def _pass_seconds(dtype: torch.dtype, net: UNet, dataset: Dataset, device: torch.device) -> float:
    """The shortest of three forward and backward passes on 32 images; leaves no trace in the network."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((32, *dataset.images.shape[1:]), generator=generator).to(device)
    t = torch.full((32,), 500, device=device)
    labels = torch.zeros(32, dtype=torch.long, device=device)
    seconds = []
    rng = torch.get_rng_state()
    for _ in range(4):
        start = perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            total = net(x, t, labels).float().square().mean()
        total.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - start)
    net.zero_grad(set_to_none=True)
    torch.set_rng_state(rng)
    return min(seconds[1:])
