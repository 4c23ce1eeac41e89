"""Averages of the weights with a power function as their profile, and any other such average from their snapshots.

θ̂_γ(t) = (γ + 1)/t^(γ+1) · ∫₀ᵗ τ^γ·θ(τ) dτ. The *width* of a profile is its standard deviation relative to t, σ_rel. It
is chosen after training: snapshots of two widths span the averages of others nearly.
Source: Karras et al. 2024 (arXiv:2312.02696, "EDM2"), section 3 and appendix C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from denoised.model.errors import TrainingError

WIDTHS = (0.05, 0.10)  # of the averages that are kept in training, as in the paper's section 3.2
MIN_WIDTH, MAX_WIDTH = 0.01, 0.28  # γ = 0 is the mean of all steps, σ_rel = 1/√12 = 0.2887

Float64 = npt.NDArray[np.float64]


def exponent(width: float) -> float:
    """γ of a width: σ_rel² = (γ + 1)/((γ + 2)²·(γ + 3))."""
    inverse = width**-2
    # (γ + 2)²·(γ + 3) = (γ + 1)/σ_rel², a cubic with one root over 0 for the widths that are allowed.
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def check_width(width: float) -> None:
    """Refuse a width that no average can have.

    Raises:
        TrainingError: if it is out of range.
    """
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise TrainingError(f"width = {width:g} is out of range ({MIN_WIDTH} … {MAX_WIDTH})")


def decay(gamma: float, step: int) -> float:
    """β of θ̂ ← β·θ̂ + (1 − β)·θ after `step` steps, 1 or more: (1 − 1/t)^(γ+1). It is 0 at the first."""
    return float((1.0 - 1.0 / step) ** (gamma + 1.0))


@torch.no_grad()
def update_average(average: Mapping[str, Tensor], net: nn.Module, decay: float) -> None:
    """average ← d·average + (1 − d)·weights; buffers are copied, since the mean of buffers belongs to no step."""
    learned = {name for name, _ in net.named_parameters()}
    for name, value in net.state_dict().items():
        if name in learned:
            # average + (1 − d)·(w − average), the same as d·average + (1 − d)·w.
            average[name].lerp_(value.to(average[name].dtype), 1 - decay)
        else:
            average[name].copy_(value)


class PowerAverages:
    """The averages of a network's weights at `WIDTHS`, updated after every step.

    values: of each width, the tensors by name.
    """

    def __init__(self, net: nn.Module) -> None:
        self.values = {width: {name: t.detach().clone() for name, t in net.state_dict().items()} for width in WIDTHS}
        self._exponents = {width: exponent(width) for width in WIDTHS}

    def update(self, net: nn.Module, step: int) -> None:
        """Include the weights after `step` steps."""
        for width, average in self.values.items():
            update_average(average, net, decay(self._exponents[width], step))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, named "{width}/{name}"."""
        return {tensor_name(width, name): t for width, own in self.values.items() for name, t in own.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        for name, own in self.tensors().items():
            own.copy_(tensors[name])


@dataclass(frozen=True)
class Profile:
    """What an average weighs, at which time.

    Attributes:
        step: t, the steps that it is over.
        gamma: γ.
    """

    step: float
    gamma: float


def inner_products(some: Sequence[Profile], others: Sequence[Profile]) -> Float64:
    """(A, B) ∫ p_a(τ)·p_b(τ) dτ of profiles p(τ) = (γ + 1)·τ^γ/t^(γ+1) for τ ≤ t, else 0."""
    t_a, gamma_a = (np.array([getattr(each, name) for each in some])[:, None] for name in ("step", "gamma"))
    t_b, gamma_b = (np.array([getattr(each, name) for each in others])[None, :] for name in ("step", "gamma"))
    # (min/t_a)^γ_a·(min/t_b)^γ_b/max: powers of ratios up to 1, which cannot overflow.
    low, high = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    powers = (low / t_a) ** gamma_a * (low / t_b) ** gamma_b
    return np.asarray((gamma_a + 1) * (gamma_b + 1) * powers / ((gamma_a + gamma_b + 1) * high))


@dataclass(frozen=True)
class Combination:
    """A sum of snapshots that is nearly another average.

    Attributes:
        weights: of each snapshot; they add up to 1.
        error: ‖p − Σ w_i·p_i‖/‖p‖ of the profiles.
    """

    weights: Float64
    error: float


def combine(snapshots: Sequence[Profile], target: Profile) -> Combination:
    """The combination of snapshots whose profile is nearest to that of an average (section 3.2, appendix C.3).

    The paper solves A·w = b for the inner products A of the snapshots and b of snapshots and target. Here the weights
    also add up to 1, so that weights which training does not change are reproduced.
    """
    own, cross = inner_products(snapshots, snapshots), inner_products(snapshots, [target])[:, 0]
    # In units of the norms, (w_i·‖p_i‖), all profiles count alike.
    norms, square = np.sqrt(np.diag(own)), float(inner_products([target], [target])[0, 0])
    count = len(snapshots)
    # min ‖p − Σ w_i·p_i‖² with Σ w_i = 1, by Lagrange's multiplier in the last row.
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = own / np.outer(norms, norms)
    system[:count, count] = system[count, :count] = 1 / norms / (1 / norms).max()
    right = np.append(cross / norms, (1 / norms).max() ** -1)
    weights = np.linalg.lstsq(system, right, rcond=None)[0][:count] / norms
    squared_error = max(0.0, square - 2 * float(weights @ cross) + float(weights @ own @ weights))
    return Combination(weights, float(np.sqrt(squared_error / square)))


def tensor_name(width: float, name: str) -> str:
    """The name of a tensor of one of the averages, in checkpoints and snapshots."""
    return f"{width:.2f}/{name}"


@lru_cache
def snapshot_steps(count: int, steps: int) -> frozenset[int]:
    """The steps after which the averages are stored: `count`, evenly over a run of `steps`, the last at its end."""
    return frozenset(max(1, round(k * steps / count)) for k in range(1, count + 1)) if count else frozenset()
