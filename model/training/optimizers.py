"""The optimizers of a training run: AdamW for everything, or Muon for the matrices and AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from denoised.model.training.learning_config import LearningConfig

MOMENTUM = 0.95
# a, b, c of a·X + b·(XXᵀ)X + c·(XXᵀ)²X, chosen so that singular values from .001 to 1 end between .7 and 1.2.
ITERATION = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# An orthogonal matrix has entries of 1/√(longer side) (root mean square); AdamW's updates have about .2.
ADAM_UPDATE = 0.2
# The first and last convolution see pixels or latents, whose axes have a meaning that rotations would mix.
OUTER = ("conv_in", "conv_out")


class Muon(Optimizer):
    """Momentum whose update of each matrix is replaced by the nearest orthogonal one (Jordan et al. 2024).

    A weight's axes after the first count as one: a convolution's (out, in, h, w) is a matrix of out × in·h·w. The
    update is scaled to the size of AdamW's, so both take one learning rate (Liu et al. 2025, arXiv:2502.16982, §2.2).
    `torch.optim.Muon` has the same step but refuses weights of more than two axes.

    parameters: each of at least two axes.
    weight_decay: as in AdamW, the share of lr·weight that each step takes away.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        assert closure is None, "the loss is not evaluated again"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    self._update(parameter, parameter.grad, group["lr"])

    def _update(self, parameter: Tensor, gradient: Tensor, lr: float) -> None:
        state: dict[str, Any] = self.state[parameter]
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        momentum.lerp_(gradient, 1 - MOMENTUM)
        # Nesterov: the momentum that the next step would have if the gradient stayed.
        matrix = gradient.lerp(momentum, MOMENTUM).flatten(1)  # (out, in·h·w)
        scale = ADAM_UPDATE * math.sqrt(max(matrix.shape))
        parameter.sub_(orthogonalize(matrix).view(parameter.shape), alpha=lr * scale)


def orthogonalize(matrix: Tensor) -> Tensor:
    """About U·Vᵀ of a matrix U·S·Vᵀ, by Newton and Schulz's iteration, in bfloat16: (m, n) float32.

    Singular values below .001 of the norm are lifted less.
    """
    a, b, c = ITERATION
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).bfloat16()  # (m, n), m ≤ n, so that XXᵀ is the smaller product
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T  # (m, m)
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.T).float()


def make_optimizers(config: LearningConfig, net: nn.Module) -> dict[str, Optimizer]:
    """The optimizers of a network's parameters, by the names that their states have in a checkpoint."""
    matrices = hidden_matrices(net) if config.optimizer == "muon" else {}
    muon = [parameter for name, parameter in net.named_parameters() if name in matrices]
    others = [parameter for name, parameter in net.named_parameters() if name not in matrices]
    made: dict[str, Optimizer] = {}
    if others:
        betas = (0.9, config.beta2)
        made["optimizer"] = AdamW(others, config.learning_rate, betas, weight_decay=config.weight_decay, fused=True)
    if muon:
        made["muon"] = Muon(muon, config.learning_rate, config.weight_decay)
    return made


def hidden_matrices(net: nn.Module) -> set[str]:
    """The names of the weights of linear layers and convolutions, apart from a U-Net's first and last convolution."""
    return {
        f"{name}.weight"
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.rpartition(".")[2] not in OUTER
    }
