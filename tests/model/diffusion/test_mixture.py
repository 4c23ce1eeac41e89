"""Every sampler on a mixture of Gaussians in the plane, where the ideal network is not affine.

The network is the mixture's own posterior mean. The output is compared with exact samples by the
energy distance (Székely & Rizzo 2013) E = 2·E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖, whose error bar
comes from pairs of exact sets of the same size.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan, advance
from denoised.model.diffusion.predictions import Estimate, score_from_epsilon
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan

LINEAR = NoiseSchedule.from_name("linear")
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[-0.6, -0.4], [0.5, 0.5], [0.7, -0.6]], dtype=torch.float64)
STDS = torch.tensor([0.15, 0.1, 0.2], dtype=torch.float64)
POINTS = 1500


def responsibilities(x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """(log p_t of each component with its weight, v_k); x: (B, 2)."""
    variance = alpha**2 * STDS**2 + sigma**2  # (K,)
    distance = ((x[:, None] - alpha * MEANS) ** 2).sum(-1)  # (B, K)
    return WEIGHTS.log() - distance / (2 * variance) - torch.log(2 * math.pi * variance), variance


def ideal_epsilon(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """ε* = −σ·Σ r_k·(−(x − αμ_k)/v_k) (mathematics.md, closed forms)."""
    joint, variance = responsibilities(x, alpha, sigma)
    pulls = (x[:, None] - alpha * MEANS) / variance[:, None]  # (B, K, 2)
    return sigma * (joint.softmax(1)[..., None] * pulls).sum(1)


def exact_samples(count: int, generator: torch.Generator) -> Tensor:
    which = torch.multinomial(WEIGHTS, count, replacement=True, generator=generator)
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return MEANS[which] + STDS[which, None] * noise


def follow(plan: Plan, generator: torch.Generator) -> Tensor:
    """POINTS trajectories as 1×1 images of two channels, in float64."""
    registers = torch.zeros(POINTS, plan.registers, 2, 1, 1, dtype=torch.float64)
    registers[:, 0] = plan.initial_scale * torch.randn(POINTS, 2, 1, 1, generator=generator, dtype=torch.float64)
    for row in range(plan.evaluations):
        x, alpha, sigma = registers[:, 0], float(plan.alpha[row]), float(plan.sigma[row])
        epsilon = ideal_epsilon(x.flatten(1), alpha, sigma).view_as(x)
        z = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        matrices = torch.from_numpy(plan.matrices[row]).expand(POINTS, -1, -1)
        registers = advance(registers, Estimate((x - sigma * epsilon) / alpha, epsilon), z, matrices)
    return registers[:, 0].flatten(1)


def energy_distance(x: Tensor, y: Tensor) -> float:
    def within(a: Tensor) -> float:
        return float(torch.cdist(a, a).sum()) / (len(a) * (len(a) - 1))

    return 2 * float(torch.cdist(x, y).mean()) - within(x) - within(y)


@pytest.fixture(scope="module")
def error_bar() -> float:
    """The mean distance of two exact sets plus five standard deviations."""
    generator = torch.Generator().manual_seed(1)
    pairs = [energy_distance(exact_samples(POINTS, generator), exact_samples(POINTS, generator)) for _ in range(30)]
    return float(torch.tensor(pairs).mean() + 5 * torch.tensor(pairs).std())


# These need a network that jumps to the end of a trajectory (test_distilled.py, test_consistency.py).
SAMPLERS_OF_ANY_NETWORK = [sampler for sampler in SAMPLERS if sampler not in ("lcm", "consistency")]


@pytest.mark.parametrize(("sampler", "eta"), [*((sampler, 0.0) for sampler in SAMPLERS_OF_ANY_NETWORK), ("ddim", 1.0)])
def test_a_sampler_reproduces_a_mixture_in_the_plane(sampler: str, eta: float, error_bar: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = follow(compile_plan(sampler, LINEAR, 200, Grid("trailing"), eta), generator)
    assert energy_distance(x, exact_samples(POINTS, generator)) < error_bar


def test_the_energy_distance_detects_a_wrong_mixture(error_bar: float) -> None:
    """It detects a lost component, means that are off by 0.1, and a sampler with too few steps."""
    generator = torch.Generator().manual_seed(2)
    exact = exact_samples(POINTS, generator)
    lost = exact[(exact - MEANS[2]).norm(dim=1) > 0.5][: POINTS - 300]
    shifted = exact + torch.tensor([0.1, 0.0])
    few = follow(compile_plan("ddim", LINEAR, 4, Grid("trailing")), generator)
    for wrong in (lost, shifted, few):
        assert energy_distance(wrong, exact_samples(POINTS, generator)) > error_bar


def test_the_ideal_noise_is_the_score_of_the_mixture_by_autograd() -> None:
    """mathematics.md, closed forms: −ε*/σ = ∇ log p_t, relative tolerance 1e-10 in float64."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    for t in (0, 50, 400, 999):
        alpha, sigma = float(LINEAR.alpha[t]), float(LINEAR.sigma[t])
        leaf = x.clone().requires_grad_()
        density = torch.logsumexp(responsibilities(leaf, alpha, sigma)[0], dim=1).sum()
        (expected,) = torch.autograd.grad(density, leaf)
        score = score_from_epsilon(ideal_epsilon(x, alpha, sigma), torch.full((50,), sigma, dtype=torch.float64))
        torch.testing.assert_close(score, expected, rtol=1e-10, atol=1e-10)
