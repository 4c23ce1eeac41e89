"""What every training run shares: a network, its optimizers, and all the state that a step depends on.

A `Learner` is its state: weights, their moving average, the optimizers' moments, the random generators and the step
count. A run that loads a saved state continues as if it had never stopped. This module knows no data, files or
progress bars.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from denoised.model.errors import TrainingError
from denoised.model.training.learning_config import LearningConfig
from denoised.model.training.optimizers import make_optimizers
from denoised.model.training.power_averages import PowerAverages, update_average

POWER = "power."  # before the names of the tensors of `PowerAverages` in a checkpoint


class Learner(ABC):
    """The state of a run between two steps. Subclasses compute the gradient, in `backward`.

    net: the network that is trained.
    ema: its weights averaged over the steps, by name; these are sampled from and exported.
    power_averages: the averages whose snapshots `denoised ema` combines; None if the run keeps no snapshots.
    step: number of steps done.
    generator: the random numbers of the batches.
    amp_dtype: dtype of the matrix products.
    measured: names of what `measure` returns.
    """

    measured: tuple[str, ...] = ()

    def __init__(self, config: LearningConfig, net: nn.Module, device: str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self.step = 0
        self.net = net.to(self.device)
        self.ema = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        self.power_averages = PowerAverages(self.net) if config.snapshots else None
        self.optimizers = make_optimizers(config, self.net)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.amp_dtype = torch.float32

    @property
    def steps(self) -> int:
        """Total number of steps of the run."""
        return self.config.steps

    @property
    def batch(self) -> int:
        """Images of one step."""
        return self.config.batch

    @property
    def images_seen(self) -> int:
        """Images of the steps done, counting repetitions."""
        return self.step * self.batch

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return self.config.rate(self.step - 1)

    @abstractmethod
    def backward(self) -> float:
        """Accumulate the gradient of the next batch's mean loss, and return that loss."""

    def measure(self) -> dict[str, float]:
        """Further numbers for the log, by the names in `measured`. Changes no state."""
        return {}

    def train_step(self) -> tuple[float, float]:
        """One optimizer step. Returns (loss, gradient norm before clipping).

        Raises:
            TrainingError: if the gradient is not finite; the weights are then unchanged.
        """
        self._set_learning_rate(self.config.rate(self.step))
        self.net.train()
        loss = self.backward()
        # ‖g‖ over all parameters; a longer gradient is scaled down to clip_norm (Pascanu et al. 2013, algorithm 1).
        norm = float(nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip_norm))
        # Checked before the step: a NaN in the weights or in the moments could never be undone.
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient of step {self.step:,} is {norm}: --resume from the newest checkpoint with a lower "
                f"--learning-rate than {self.config.learning_rate}"
            )
        for optimizer in self.optimizers.values():
            optimizer.step()
            # None, not zeros: the next backward pass writes its gradients instead of adding them.
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        update_average(self.ema, self.net, ema_decay(self.config.ema_decay, self.step))
        if self.power_averages is not None:
            self.power_averages.update(self.net, self.step)
        return loss, norm

    def autocast(self) -> torch.autocast:
        """The context in which matrix products have the dtype of the run."""
        return torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype != torch.float32)

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, as named tensors on the CPU."""
        state = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        state |= {f"ema.{name}": value for name, value in self.ema.items()}
        if self.power_averages is not None:
            state |= {f"{POWER}{name}": value for name, value in self.power_averages.tensors().items()}
        for kind, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                state |= {f"{kind}.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        state["generator"] = self.generator.get_state()
        # Dropout draws from torch's own generator.
        state["torch_rng"] = torch.get_rng_state()
        state["step"] = torch.tensor(self.step)
        state["bfloat16"] = torch.tensor(self.amp_dtype == torch.bfloat16)
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from the `state()` of a run with the same configuration.

        Raises:
            TrainingError: if the tensors do not fit this network.
        """
        # First: a checkpoint of another network is refused before anything has changed.
        self._load_weights(_with_prefix(state, "net."), "the checkpoint")
        for name, value in _with_prefix(state, "ema.").items():
            self.ema[name].copy_(value)
        self._load_power_averages(_with_prefix(state, POWER))
        for kind, optimizer in self.optimizers.items():
            _load_moments(optimizer, _with_prefix(state, f"{kind}."))
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

    def _set_learning_rate(self, rate: float) -> None:
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _load_power_averages(self, tensors: dict[str, Tensor]) -> None:
        """Continue the averages, or do without them in a run that began without: they weigh all of its steps."""
        if self.power_averages is not None and tensors:
            self.power_averages.load(tensors)
        else:
            self.power_averages = None


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
    # A batch may span two epochs, so each position names its own.
    return torch.stack([_epoch(count, seed, position // count)[position % count] for position in positions])


@lru_cache(maxsize=2)
def _epoch(count: int, seed: int, epoch: int) -> Tensor:
    # 100,003 is more than any run has epochs, so no two pairs (seed, epoch) share a permutation.
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))


def stratified_timesteps(batch: int, timesteps: int, generator: torch.Generator) -> Tensor:
    """Timesteps (batch,) that are uniform and stratified over the batch: (i + u)/B with one u for all images.

    This lowers the variance of the loss (Kingma et al. 2021, arXiv:2107.00630, appendix I.1).
    """
    # (B,) in [0, 1), one value in each of B equal intervals.
    offset = (torch.arange(batch) + torch.rand((), generator=generator)) / batch
    return (offset * timesteps).long().clamp(max=timesteps - 1)


def _load_moments(optimizer: Optimizer, state: dict[str, Tensor]) -> None:
    """Restore an optimizer from its part of a checkpoint, "{index of the parameter}.{name of the moment}"."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = _laid_out_as(parameters[int(index)], value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment in the memory format of its parameter: the fused optimizer reads both in the order of memory."""
    return torch.empty_like(parameter, device="cpu").copy_(value) if value.shape == parameter.shape else value


def _with_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
