"""How likely a model finds a picture, through the probability-flow ODE.

On x̄ = x/α with ρ = σ/α the flow is dx̄/dρ = ε̂(x̄, ρ) (Karras et al. 2022, eq. 1), so that

    log p(x̄ at ρ_min) = log p(x̄ at ρ_max) + ∫ ∇·ε̂ dρ        (Song et al. 2021, arXiv:2011.13456, eq. 39)

with the divergence estimated by Hutchinson's trace, vᵀ(∂ε̂/∂x̄)v for v of random signs (eq. 40),
and x at ρ_max taken as N(0, I). The steps are Heun's, equal in log ρ: as many for every image, so
an image's figure does not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.errors import PlanError
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.pixel_model import PixelModel

BIN = 2 / 255  # the width of a byte in [−1, 1]: k/127.5 − 1

# ε̂(x, t, α, σ) of images x (B, …) at one noise level.
Epsilon = Callable[[Tensor, float, float, float], Tensor]


@dataclass(frozen=True)
class Flow:
    """Where the ODE went. log_density: (B,) log p at ρ_min, in nats; latent: x at ρ_max, about N(0, I)."""

    log_density: Tensor
    latent: Tensor


def bits_per_dimension(
    model: PixelModel,
    images: Tensor,
    labels: Sequence[int | None],
    *,
    steps: int = 100,
    probes: int = 1,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """−log₂ p(image | label) a pixel and channel, of pictures in bytes.

    images: (B, C, H, W) uint8; labels: a class index each, or None; steps: of Heun's method, two evaluations
    each; probes: vectors of Hutchinson's estimate; seeds: an image each (0, 1, …), of them and of the noise in
    [−½, ½) that makes bytes a density (uniform dequantisation, Theis et al. 2016; on average it costs bits, it
    never wins any). Returns (B,) float64; 8 is what bytes drawn at random need.

    Raises:
        PlanError: for pictures of another shape, or steps or probes under 1.
    """
    if tuple(images.shape[1:]) != model.shape:
        raise PlanError(f"images of shape {tuple(images.shape[1:])} are not the model's {model.shape}")
    seeds = range(len(images)) if seeds is None else seeds
    noise = torch.stack([_dequantising(model.shape, seed) for seed in seeds])
    x0 = (images.double() + noise.double()) / 127.5 - 1
    conditioning = model.encode([ConditioningRequest(label=label) for label in labels])

    def epsilon(x: Tensor, t: float, alpha: float, sigma: float) -> Tensor:
        times, alphas, sigmas = (torch.full((len(x),), value, device=model.device) for value in (t, alpha, sigma))
        return model.denoise_with_grad(x, times, alphas, sigmas, conditioning).epsilon

    x0 = x0.float().to(model.device)
    flow = log_density(epsilon, model.schedule, x0, steps=steps, probes=probes, seeds=seeds)
    return bits(flow.log_density, math.prod(model.shape))


def bits(log_density: Tensor, dimensions: int) -> Tensor:
    """Nats of a density on [−1, 1] as bits a dimension of bytes: P(byte) = p·BIN."""
    return -log_density / (dimensions * math.log(2)) - math.log2(BIN)


def log_density(
    epsilon: Epsilon,
    schedule: NoiseSchedule,
    x0: Tensor,
    *,
    steps: int = 100,
    probes: int = 1,
    seeds: Sequence[int] | None = None,
) -> Flow:
    """log p of x̄ = x0 at the schedule's lowest noise level; x0: (B, …), in the dtype that is computed in.

    seeds: of the probes, an image each; 0, 1, … if left out.

    Raises:
        PlanError: for steps or probes under 1.
    """
    for name, value in (("steps", steps), ("probes", probes)):
        if value < 1:
            raise PlanError(f"{name} = {value} is not at least 1")
    ratio, t = _levels(schedule, steps)
    seeds = range(len(x0)) if seeds is None else seeds
    signs = torch.stack([_signs(x0.shape[1:], probes, seed) for seed in seeds], dim=1)
    signs = signs.to(x0)  # (probes, B, …)
    x, gained = x0, torch.zeros(len(x0), dtype=torch.float64)
    for i in range(steps):
        slope, divergence = _slope(epsilon, x, float(t[i]), float(ratio[i]), signs)
        h = float(ratio[i + 1] - ratio[i])
        guess = x + h * slope
        there, divergence_there = _slope(epsilon, guess, float(t[i + 1]), float(ratio[i + 1]), signs)
        x = x + h / 2 * (slope + there)
        gained += h / 2 * (divergence + divergence_there)
    alpha = 1 / math.sqrt(1 + float(ratio[-1]) ** 2)
    latent = alpha * x
    dimensions = x0[0].numel()
    squares = latent.double().flatten(1).square().sum(1).cpu()
    prior = -squares / 2 - dimensions / 2 * math.log(2 * math.pi) + dimensions * math.log(alpha)
    return Flow(prior + gained, latent)


def _levels(schedule: NoiseSchedule, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """ρ (steps + 1,) rising, equal in log ρ from the first timestep to the last with a picture in it; and t."""
    seen = schedule.alpha > 0
    table = schedule.sigma[seen] / schedule.alpha[seen]
    ratio = np.geomspace(table[0], table[-1], steps + 1)
    return ratio, np.interp(np.log(ratio), np.log(table), np.arange(len(table)))


def _slope(epsilon: Epsilon, x: Tensor, t: float, ratio: float, signs: Tensor) -> tuple[Tensor, Tensor]:
    """ε̂ at x̄ and Hutchinson's estimate of its divergence (B,)."""
    alpha = 1 / math.sqrt(1 + ratio**2)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        slope = epsilon(alpha * leaf, t, alpha, ratio * alpha)
        traces = []
        for probe in signs:
            (pulled,) = torch.autograd.grad(slope, leaf, probe, retain_graph=True)
            traces.append((pulled * probe).double().flatten(1).sum(1).cpu())
    return slope.detach(), torch.stack(traces).mean(0)


def _signs(shape: Sequence[int], probes: int, seed: int) -> Tensor:
    """±1 of an image's own (probes, …)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (probes, *shape), generator=generator) * 2 - 1


def _dequantising(shape: Sequence[int], seed: int) -> Tensor:
    """Uniform in [−½, ½), of an image's own."""
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)) - 0.5
