"""The likelihood of an image under a model, by the probability-flow ODE.

In terms of x̄ = x/α and ρ = σ/α the ODE is dx̄/dρ = ε̂(x̄, ρ) (Karras et al. 2022, arXiv:2206.00364,
eq. 1), and along it

    log p(x̄ at ρ_min) = log p(x̄ at ρ_max) + ∫ ∇·ε̂ dρ        (Song et al. 2021, arXiv:2011.13456, eq. 39)

The divergence is estimated by Hutchinson's trace, E[vᵀ(∂ε̂/∂x̄)v] for vectors v of random signs
(eq. 40), and x at ρ_max is assumed to be N(0, I). Every image takes the same steps, so its likelihood does
not depend on its batch.

The steps are equal in u = log ρ, and so are both integrals: x = αx̄ stays bounded, dx/du = σ·(ε̂ − σ·x)
vanishes at both ends, and ρ·∇·ε̂ goes from 0 to the number of dimensions. A step predicts x with Adams and
Bashforth's method of order 2 and corrects it with Adams and Moulton's of order 3 (Hairer, Nørsett & Wanner
1993, Solving Ordinary Differential Equations I, section III.1); the trapezoidal rule integrates the divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from denoised.model.diffusion.likelihood_plan import FlowLevels, bits, dequantization_noise, probe_signs
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.errors import PlanError
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.pixel_model import PixelModel

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


@dataclass(frozen=True)
class Likelihood:
    """How likely images are.

    bits_per_dimension: (B,) float64, −log₂ p(image | label) per pixel and channel.
    integration_error: (B,) float64, see `estimate_error`: an estimate, not a bound, of the error of these bits from the
        finite number of steps. The scatter of Hutchinson's estimate comes on top.
    """

    bits_per_dimension: Tensor
    integration_error: Tensor


def measure_likelihood(
    model: PixelModel,
    images: Tensor,
    labels: Sequence[int | None],
    *,
    steps: int = 100,
    probes: int = 1,
    seeds: Sequence[int] | None = None,
) -> Likelihood:
    """`bits_per_dimension` with an estimate of its integration error, for three quarters as much time again.

    Arguments and errors: as in `bits_per_dimension`.
    """

    def solve(count: int) -> Tensor:
        return bits_per_dimension(model, images, labels, steps=count, probes=probes, seeds=seeds)

    return estimate_error(solve, steps)


def estimate_error(solve: Callable[[int], Tensor], steps: int) -> Likelihood:
    """Bits with an estimate of their error, from the results of half and of a quarter of the steps.

    The error of N/2 steps is about |b(N) − b(N/2)|, and that of N steps is smaller. Where the error changes its sign
    with N, this difference is zero by chance; a third of |b(N/2) − b(N/4)| is the same error for a method of order 2
    (Richardson's extrapolation), and the larger of both is taken.

    solve: the bits (B,) for a number of steps.
    """
    half = steps // 2 or 2  # one step is compared with two
    found, other, rough = solve(steps), solve(half), solve(max(half // 2, 1))
    return Likelihood(found, torch.maximum((found - other).abs(), (other - rough).abs() / 3))


def bits_per_dimension(
    model: PixelModel,
    images: Tensor,
    labels: Sequence[int | None],
    *,
    steps: int = 100,
    probes: int = 1,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """−log₂ p(image | label) per pixel and channel: (B,) float64. Random bytes take 8 bits or more.

    Noise in [−½, ½) turns bytes into a continuous density: uniform dequantization, whose bits bound those of
    the bytes from above (Theis et al. 2016, arXiv:1511.01844, section 3.1).

    images: (B, C, H, W) uint8.
    labels: a class index for each image, or None for no class.
    steps: of the integration, two evaluations each.
    probes: random vectors of Hutchinson's estimate.
    seeds: one per image, for its probes and its noise; 0, 1, … by default.

    Raises:
        PlanError: for images of another shape, steps or probes below 1, or a consistency model.
    """
    model.check_has_scores()
    if tuple(images.shape[1:]) != model.shape:
        raise PlanError(f"images of shape {tuple(images.shape[1:])} are not the model's {model.shape}")
    seeds = range(len(images)) if seeds is None else seeds
    noise = torch.stack([dequantization_noise(model.shape, seed) for seed in seeds])
    # Bytes and noise in [−½, 255½) → [−1, 1] and half a step beyond.
    x0 = (images.double() + noise.double()) / 127.5 - 1
    conditioning = model.encode([ConditioningRequest(label=label) for label in labels])

    def epsilon(x: Tensor, t: float, alpha: float, sigma: float) -> Tensor:
        times, alphas, sigmas = (torch.full((len(x),), value, device=model.device) for value in (t, alpha, sigma))
        return model.denoise_with_grad(x, times, alphas, sigmas, conditioning).epsilon

    x0 = x0.float().to(model.device)
    flow = log_density(epsilon, model.schedule, x0, steps=steps, probes=probes, seeds=seeds)
    return bits(flow.log_density, math.prod(model.shape))


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
    levels = FlowLevels.of(schedule, steps)
    ratio, t = levels.ratio, levels.t
    seeds = range(len(x0)) if seeds is None else seeds
    signs = torch.stack([probe_signs(x0.shape[1:], probes, seed) for seed in seeds], dim=1).to(x0)  # (probes, B, …)
    x, integral = _integrate(epsilon, x0 / math.sqrt(1 + ratio[0] ** 2), ratio, t, signs)  # from α·x0
    dimensions = x0[0].numel()
    # log N(x; 0, I) as a density of x̄: d·log α is the logarithm of the Jacobian of x = αx̄.
    log_alpha = -math.log(1 + ratio[-1] ** 2) / 2
    squares = x.double().flatten(1).square().sum(1).cpu()
    prior = -squares / 2 - dimensions / 2 * math.log(2 * math.pi) + dimensions * log_alpha
    return FlowSolution(prior + integral, x)


def _integrate(
    epsilon: NoisePredictor, x: Tensor, ratio: list[float], t: list[float], signs: Tensor
) -> tuple[Tensor, Tensor]:
    """From x = αx̄ at the first level: x at the last level, and ∫ ∇·ε̂ dρ (B,) float64 between them."""
    steps = len(ratio) - 1
    h = math.log(ratio[-1] / ratio[0]) / steps  # in u = log ρ
    last = torch.zeros_like(x)  # the slope one step before
    integral = torch.zeros(len(x), dtype=torch.float64)
    for i in range(steps + 1):
        slope, divergence = _slope_and_divergence(epsilon, x, t[i], ratio[i], signs)
        # The trapezoidal rule: the ends count half. All nodes are on the corrected path.
        integral += h * divergence * (0.5 if i in (0, steps) else 1.0)
        if i < steps:
            # Adams' methods of order 2 and 3; the first step, where the slope is nearly 0, is Heun's.
            guess = (3 * slope - last) / 2 if i else slope
            with torch.no_grad():
                slope_end = _slope(epsilon, x + h * guess, t[i + 1], ratio[i + 1])
            x = x + h * ((5 * slope_end + 8 * slope - last) / 12 if i else (slope + slope_end) / 2)
            last = slope
    return x, integral


def _slope(epsilon: NoisePredictor, x: Tensor, t: float, ratio: float) -> Tensor:
    """dx/du at x = αx̄, u = log ρ: α·ρ·ε̂ + x·d(log α)/du = σ·(ε̂ − σ·x)."""
    alpha = 1 / math.sqrt(1 + ratio**2)  # α² + σ² = 1 and σ/α = ρ
    sigma = ratio * alpha
    return sigma * (epsilon(x, t, alpha, sigma) - sigma * x)


def _slope_and_divergence(
    epsilon: NoisePredictor, x: Tensor, t: float, ratio: float, signs: Tensor
) -> tuple[Tensor, Tensor]:
    """`_slope`, and Hutchinson's estimate of ρ·∇·ε̂ (B,), the divergence over x̄ as an integrand over u.

    signs: (probes, B, …) vectors v; one vector-Jacobian product gives vᵀ(∂ε̂/∂x̄)v for each.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        slope = _slope(epsilon, leaf, t, ratio)
        traces = []
        for probe in signs:
            (product,) = torch.autograd.grad(slope, leaf, probe, retain_graph=True)
            traces.append((product * probe).double().flatten(1).sum(1).cpu())
    # slope = σ·ε̂ − σ²·x, and ρ·∂ε̂/∂x̄ = ρ·α·∂ε̂/∂x = σ·∂ε̂/∂x: add σ² for each dimension.
    variance = ratio**2 / (1 + ratio**2)
    return slope.detach(), torch.stack(traces).mean(0) + variance * x[0].numel()
