"""The likelihood of an image under a model, by the probability-flow ODE.

In terms of x̄ = x/α and ρ = σ/α the ODE is dx̄/dρ = ε̂(x̄, ρ) (Karras et al. 2022, arXiv:2206.00364,
eq. 1), and along it

    log p(x̄ at ρ_min) = log p(x̄ at ρ_max) + ∫ ∇·ε̂ dρ        (Song et al. 2021, arXiv:2011.13456, eq. 39)

The divergence is estimated by Hutchinson's trace, E[vᵀ(∂ε̂/∂x̄)v] for vectors v of random signs
(eq. 40), and x at ρ_max is assumed to be N(0, I). The ODE is solved by Heun's method with equal steps
in log ρ. Every image takes the same steps, so its likelihood does not depend on its batch.
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

BYTE_WIDTH = 2 / 255  # of one byte value in [−1, 1], since bytes are k/127.5 − 1

# ε̂(x, t, α, σ) for images x (B, …) at one noise level.
NoisePredictor = Callable[[Tensor, float, float, float], Tensor]


@dataclass(frozen=True)
class FlowSolution:
    """The solution of the ODE.

    log_density: (B,) log p of x̄ at ρ_min, in nats.
    latent: (B, …) x at ρ_max, approximately N(0, I).
    """

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
    """−log₂ p(image | label) per pixel and channel: (B,) float64. Random bytes take 8 bits.

    Noise in [−½, ½) turns bytes into a continuous density: uniform dequantization, whose bits bound those of
    the bytes from above (Theis et al. 2016, arXiv:1511.01844, section 3.1).

    images: (B, C, H, W) uint8.
    labels: a class index for each image, or None for no class.
    steps: of Heun's method, two evaluations each.
    probes: random vectors of Hutchinson's estimate.
    seeds: one per image, for its probes and its noise; 0, 1, … by default.

    Raises:
        PlanError: for images of another shape, or steps or probes below 1.
    """
    if tuple(images.shape[1:]) != model.shape:
        raise PlanError(f"images of shape {tuple(images.shape[1:])} are not the model's {model.shape}")
    seeds = range(len(images)) if seeds is None else seeds
    noise = torch.stack([_dequantization_noise(model.shape, seed) for seed in seeds])
    x0 = (images.double() + noise.double()) / 127.5 - 1
    conditioning = model.encode([ConditioningRequest(label=label) for label in labels])

    def epsilon(x: Tensor, t: float, alpha: float, sigma: float) -> Tensor:
        times, alphas, sigmas = (torch.full((len(x),), value, device=model.device) for value in (t, alpha, sigma))
        return model.denoise_with_grad(x, times, alphas, sigmas, conditioning).epsilon

    x0 = x0.float().to(model.device)
    flow = log_density(epsilon, model.schedule, x0, steps=steps, probes=probes, seeds=seeds)
    return bits(flow.log_density, math.prod(model.shape))


def bits(log_density: Tensor, dimensions: int) -> Tensor:
    """Convert nats of a density on [−1, 1] to bits per dimension of bytes, by P(byte) = p·BYTE_WIDTH."""
    return -log_density / (dimensions * math.log(2)) - math.log2(BYTE_WIDTH)


def log_density(
    epsilon: NoisePredictor,
    schedule: NoiseSchedule,
    x0: Tensor,
    *,
    steps: int = 100,
    probes: int = 1,
    seeds: Sequence[int] | None = None,
) -> FlowSolution:
    """Solve the ODE from x̄ = x0 at the schedule's lowest noise level to its highest.

    x0: (B, …), in the dtype to compute in.
    steps, probes: as in `bits_per_dimension`.
    seeds: of the probes, one per image; 0, 1, … by default.

    Raises:
        PlanError: for steps or probes below 1.
    """
    for name, value in (("steps", steps), ("probes", probes)):
        if value < 1:
            raise PlanError(f"{name} = {value} is not at least 1")
    ratio, t = _levels(schedule, steps)
    seeds = range(len(x0)) if seeds is None else seeds
    signs = torch.stack([_signs(x0.shape[1:], probes, seed) for seed in seeds], dim=1)
    signs = signs.to(x0)  # (probes, B, …)
    x, integral = _integrate(epsilon, x0, t, ratio, signs)
    alpha = 1 / math.sqrt(1 + float(ratio[-1]) ** 2)
    latent = alpha * x
    dimensions = x0[0].numel()
    # log N(αx̄; 0, I) as a density of x̄: d·log α is the logarithm of the Jacobian of x = αx̄.
    squares = latent.double().flatten(1).square().sum(1).cpu()
    prior = -squares / 2 - dimensions / 2 * math.log(2 * math.pi) + dimensions * math.log(alpha)
    return FlowSolution(prior + integral, latent)


def _integrate(
    epsilon: NoisePredictor, x: Tensor, t: np.ndarray, ratio: np.ndarray, signs: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve the ODE over the levels by Heun's method: x̄ at the last level, and ∫ ∇·ε̂ dρ (B,) along the way."""
    integral = torch.zeros(len(x), dtype=torch.float64)
    for i in range(len(ratio) - 1):
        # An Euler step to the next level, then the mean of the slopes at both ends. The divergence is integrated by the
        # same trapezoidal rule.
        slope, divergence = _slope(epsilon, x, float(t[i]), float(ratio[i]), signs)
        h = float(ratio[i + 1] - ratio[i])
        x_euler = x + h * slope
        slope_end, divergence_end = _slope(epsilon, x_euler, float(t[i + 1]), float(ratio[i + 1]), signs)
        x = x + h / 2 * (slope + slope_end)
        integral += h / 2 * (divergence + divergence_end)
    return x, integral


def _levels(schedule: NoiseSchedule, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """ρ (steps + 1,), ascending in equal steps of log ρ, and the timesteps t there.

    The last level is that of the last timestep with α > 0: where α = 0, ρ is infinite.
    """
    finite = schedule.alpha > 0
    table = schedule.sigma[finite] / schedule.alpha[finite]
    ratio = np.geomspace(table[0], table[-1], steps + 1)
    return ratio, np.interp(np.log(ratio), np.log(table), np.arange(len(table)))


def _slope(epsilon: NoisePredictor, x: Tensor, t: float, ratio: float, signs: Tensor) -> tuple[Tensor, Tensor]:
    """ε̂ at x̄ = x, and Hutchinson's estimate of its divergence (B,).

    signs: (probes, B, …) vectors v; one vector-Jacobian product gives vᵀ(∂ε̂/∂x̄) for each.
    """
    alpha = 1 / math.sqrt(1 + ratio**2)  # α² + σ² = 1 and σ/α = ρ
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        slope = epsilon(alpha * leaf, t, alpha, ratio * alpha)
        traces = []
        for probe in signs:
            (product,) = torch.autograd.grad(slope, leaf, probe, retain_graph=True)
            traces.append((product * probe).double().flatten(1).sum(1).cpu())
    return slope.detach(), torch.stack(traces).mean(0)


def _signs(shape: Sequence[int], probes: int, seed: int) -> Tensor:
    """Random signs of one image: (probes, *shape) of ±1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (probes, *shape), generator=generator) * 2 - 1


def _dequantization_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Uniform noise in [−½, ½) for one image."""
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)) - 0.5
