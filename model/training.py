"""Training: the loss, one step of it, and everything a step depends on.

A `Trainer` is exactly its state: weights, their moving average, the optimiser's moments, the
generators and the number of steps done. Saving that and loading it again continues the run
as if it had never stopped. Files and progress bars are `model.runs`' business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import UNetConfig
from model.data import Dataset, to_unit
from model.errors import TrainingError
from model.noise import NoiseSchedule, add_noise, tables, training_target
from model.unet import UNet


@dataclass(frozen=True)
class Preset:
    """The shape of a network; the data set decides size, channels and classes."""

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int
    groups: int
    head_dim: int


#                     channels             attention at each level       layers  groups  head_dim
PRESETS = {
    "tiny":   Preset((16, 32),            (False, True),                 1,      8,      16),
    "small":  Preset((32, 64, 128),       (False, False, True),          1,      8,      32),
    "medium": Preset((64, 128, 256),      (False, False, True),          2,      16,     64),
    "large":  Preset((64, 128, 256, 256), (False, False, True, True),    2,      32,     64),
}  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a run's numbers; stored beside it as `config.json`."""

    preset: str = "small"
    prediction_type: str = "v_prediction"
    beta_schedule: str = "squaredcos_cap_v2"
    timesteps: int = 1000
    images: int = 1_000_000  # seen in all
    batch: int = 128
    learning_rate: float = 1e-3
    lr_schedule: str = "cosine"  # or "constant"
    warmup: int = 500  # steps
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    label_dropout: float = 0.1
    dropout: float = 0.0
    ema_decay: float = 0.999
    seed: int = 0
    precision: str = "auto"  # or "float32", "bfloat16"

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return math.ceil(self.images / self.batch)

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, …: linear warm-up, then constant or half a cosine to zero."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        if self.lr_schedule == "constant":
            return self.learning_rate * warm
        done = min(1.0, step / max(self.steps, 1))
        return self.learning_rate * warm * (1 + math.cos(math.pi * done)) / 2


def unet_config(preset: str, dataset: Dataset, dropout: float = 0.0) -> UNetConfig:
    """The network for a data set: its channels and size, its K classes and the null class.

    Raises:
        TrainingError: when the pictures' size does not fit the preset.
    """
    shape = PRESETS[preset]
    channels, height, width = dataset.images.shape[1:]
    factor = 2 ** (len(shape.channels) - 1)
    if height % factor or width % factor:
        raise TrainingError(
            f"images of {width}×{height} do not fit preset {preset!r}: sides must be multiples of {factor}"
        )
    return UNetConfig(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=shape.channels,
        layers_per_block=shape.layers,
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in shape.attention),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(shape.attention)),
        attention_head_dim=shape.head_dim,
        norm_num_groups=shape.groups,
        dropout=dropout,
        num_class_embeds=len(dataset.labels) + 1,
    )


class Trainer:
    """A run between two steps.

    Raises:
        TrainingError: when the configuration does not fit the data.
    """

    def __init__(self, config: TrainingConfig, dataset: Dataset, device: str = "cpu") -> None:
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
        self.alpha, self.sigma = tables(NoiseSchedule.named(config.beta_schedule, config.timesteps), self.device)
        self.amp_dtype = choose_precision(config.precision, self.net, dataset, self.device)

    @property
    def images_seen(self) -> int:
        return self.step * self.config.batch

    def train_step(self) -> tuple[float, float]:
        """One optimiser step. Returns (loss, gradient norm before clipping)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step)
        self.net.train()
        loss = self.loss(*self._draw_batch())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._average()
        return float(loss.detach()), float(norm)

    def loss(self, x0: Tensor, t: Tensor, labels: Tensor, epsilon: Tensor) -> Tensor:
        """E‖f_θ(x_t, t, label) − target‖² (Ho et al. 2020, eq. 14; the target is ε, v or x_0)."""
        alpha, sigma = self.alpha[t], self.sigma[t]
        x = add_noise(x0, epsilon, alpha, sigma)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype != torch.float32):
            output = self.net(x, t, labels)
        target = training_target(x0, epsilon, alpha, sigma, self.config.prediction_type)
        return F.mse_loss(output.float(), target)

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
        """(x_0, t, labels, ε) of this step. Every image has its turn once an epoch."""
        config = self.config
        index = order_of(len(self.dataset), config.seed, self.images_seen, config.batch)
        x0 = to_unit(self.dataset.images[index])
        # Uniform t, stratified over the batch (Kingma et al. 2021, arXiv:2107.00630, appendix I.1).
        offset = (torch.arange(config.batch) + torch.rand((), generator=self.generator)) / config.batch
        t = (offset * config.timesteps).long().clamp(max=config.timesteps - 1)
        dropped = torch.rand(config.batch, generator=self.generator) < config.label_dropout
        labels = self.dataset.classes[index].masked_fill(dropped, len(self.dataset.labels))
        epsilon = torch.randn(x0.shape, generator=self.generator)
        return x0.to(self.device), t.to(self.device), labels.to(self.device), epsilon.to(self.device)

    @torch.no_grad()
    def _average(self) -> None:
        decay = ema_decay(self.config.ema_decay, self.step)
        for name, value in self.net.state_dict().items():
            if value.is_floating_point():
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

    Raises:
        TrainingError: for a word that is none of auto, float32, bfloat16.
    """
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if wanted in named:
        return named[wanted]
    if wanted != "auto":
        raise TrainingError(f"precision = {wanted!r} is not known (auto, {', '.join(named)})")
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
