"""The whole reverse diffusion of a few images at once, without a server.

The running batch in `worker.engine` does the same for everybody; this loop serves training
grids, tests and anyone who wants to read the algorithm in twenty lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.denoiser import PixelModel, guide
from model.plans import advance


def initial_noise(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """One draw of unit noise in an image's own shape: CPU, float32, whatever device follows."""
    return torch.randn(shape, generator=generator, dtype=torch.float32)


@torch.inference_mode()
def sample(
    model: PixelModel,
    labels: Sequence[int | None],
    *,
    seed: int = 0,
    sampler: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Images for `labels`, image k from seed + k. Returns x_0 (B, C, H, W) about [−1, 1].

    Raises:
        PlanError: for a sampler, steps or η that are not offered.
    """
    plan = model.plan(sampler, steps, eta)
    generators = [torch.Generator().manual_seed(seed + k) for k in range(len(labels))]
    x = torch.stack([initial_noise(g, model.shape) for g in generators]).to(model.device)
    registers = torch.zeros(len(labels), plan.registers, *model.shape, device=model.device)
    registers[:, 0] = plan.start * x
    conditions = torch.stack([model.condition(label) for label in labels])
    nothing = torch.stack([model.condition(None) for _ in labels])
    for row in range(plan.evaluations):
        x = registers[:, 0]
        t, alpha, sigma = (_filled(table[row], len(labels), model.device) for table in (plan.t, plan.alpha, plan.sigma))
        estimate = model.denoise(x, t, alpha, sigma, conditions)
        if guidance_scale != 1.0:
            scale = _filled(guidance_scale, len(labels), model.device)
            estimate = guide(estimate, model.denoise(x, t, alpha, sigma, nothing), scale)
        guided = torch.full((len(labels),), guidance_scale != 1.0, device=model.device)
        estimate = model.clipping(estimate, x, alpha, sigma, guided)
        z = torch.zeros_like(x)
        if plan.draws(row):
            z = torch.stack([initial_noise(g, model.shape) for g in generators]).to(model.device)
        matrices = torch.from_numpy(plan.matrices[row]).float().to(model.device).expand(len(labels), -1, -1)
        registers = advance(registers, estimate, z, matrices)
    return registers[:, 0]


def _filled(value: float, count: int, device: torch.device) -> Tensor:
    return torch.full((count,), float(value), dtype=torch.float32, device=device)
