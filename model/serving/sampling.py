"""The whole reverse diffusion of a few images at once, without a server.

The running batch in `worker.engine.engine` does the same for every job at once; this loop serves training
grids, tests and anyone who wants to read the algorithm in twenty lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from denoised.model.diffusion.guidance import apply_guidance, is_guided, is_within
from denoised.model.diffusion.level_choice import MODELS_OWN, LevelChoice
from denoised.model.diffusion.plans import Plan, advance, apply_learned_variance
from denoised.model.diffusion.predictions import Estimate
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest
from denoised.model.serving.protocol import ServedModel


def initial_noise(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """One draw of unit noise in an image's own shape: always on the CPU and in float32, whatever device follows."""
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def count_evaluations(
    plan: Plan, guidance_scale: float = 1.0, guidance_interval: tuple[float, float] | None = None
) -> int:
    """Evaluations of the network for one image: one for each row of the plan, and another where guidance is on."""
    if not is_guided(guidance_scale):
        return plan.evaluations
    return sum(1 + is_within(plan.ratio(row), guidance_interval) for row in range(plan.evaluations))


def mix_noise(noise: Tensor, other: Tensor, mix: float) -> Tensor:
    """Spherical interpolation from one seed's noise to another's: cos(mix·π/2)·noise + sin(mix·π/2)·other.

    Two draws of d components are at an angle of π/2 ± 1/√d. Taking π/2 for it gives unit variance for every mix, and
    needs no sum over the components, whose last bit would depend on the machine.
    """
    if mix == 1:
        return other
    angle = mix * math.pi / 2
    return math.cos(angle) * noise + math.sin(angle) * other


@torch.inference_mode()
def sample(
    model: ServedModel,
    labels: Sequence[int | ConditioningRequest | None],
    *,
    seed: int = 0,
    sampler: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    levels: LevelChoice = MODELS_OWN,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    observe: Callable[[int, Tensor], None] = lambda row, x: None,
) -> Tensor:
    """Sample one image per label or request, image k from seed + k. Returns x_0 (B, C, H, W), pixels about [−1, 1] or
    latents; `model.decode` makes pictures of them.

    labels: class indices, None for unconditional images, or requests of one size.
    observe: called before each evaluation with the row of the plan and x (B, C, H, W) there.

    Raises:
        PlanError: for a sampler, steps, η, levels or labels that the model does not offer.
    """
    plan = model.plan(sampler, steps, eta, levels)
    requests = [each if isinstance(each, ConditioningRequest) else ConditioningRequest(label=each) for each in labels]
    requests = [replace(request, guidance_scale=guidance_scale) for request in requests]
    count, device, shape = len(requests), model.device, model.shape_of(requests[0])
    generators = [torch.Generator().manual_seed(seed + k) for k in range(count)]

    def draw() -> Tensor:
        return torch.stack([initial_noise(generator, shape) for generator in generators]).to(device)

    denoiser = _GuidedDenoiser(model, requests, guidance_scale, guidance_rescale)
    registers = torch.zeros(count, plan.registers, *shape, device=device)  # (B, R, C, H, W), x first
    # x_T: the first draw of each image's generator. Every row that takes noise draws once more.
    registers[:, 0] = plan.initial_scale * draw()
    for row in range(plan.evaluations):
        t, alpha, sigma, log_variance_range = (
            _filled(table[row], count, device) for table in (plan.t, plan.alpha, plan.sigma, plan.log_variance_range)
        )
        x = registers[:, 0]
        observe(row, x)
        estimate = denoiser(x, t, alpha, sigma, guided=is_within(plan.ratio(row), guidance_interval))
        z = draw() if plan.draws_noise(row) else torch.zeros_like(x)
        if estimate.variance_output is not None:
            z = apply_learned_variance(z, estimate.variance_output, log_variance_range)
        matrices = torch.from_numpy(plan.matrices[row]).float().to(device).expand(count, -1, -1)  # (B, R, R+3)
        # registers' = M·(registers, x̂_0, ε̂, z), for each image its own matrix.
        registers = advance(registers, estimate, z, matrices)
    return registers[:, 0]


class _GuidedDenoiser:
    """A model's estimates for the same few images at every row: guided where the row asks for it, and clipped."""

    def __init__(
        self, model: ServedModel, requests: Sequence[ConditioningRequest], scale: float, rescale: float
    ) -> None:
        self._model, self._scale, self._rescale = model, scale, rescale
        self._conditioning = model.encode(requests)
        self._unconditional: Conditioning | None = None  # without guidance, or if the network takes the scale as input
        if is_guided(scale) and not model.card.guidance_embedded:
            # In one call, so that all have the same number of token sequences.
            both = model.encode([*requests, *(request.unconditional() for request in requests)])
            halves = slice(len(requests)), slice(len(requests), None)
            self._conditioning, self._unconditional = (both.select(half) for half in halves)

    def __call__(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, *, guided: bool) -> Estimate:
        """The estimate for x (B, C, H, W) at the levels t, alpha, sigma (B,)."""
        model, count = self._model, len(x)
        estimate = model.denoise(x, t, alpha, sigma, self._conditioning)
        guiding = self._unconditional if guided else None
        if guiding is not None:
            unconditional = model.denoise(x, t, alpha, sigma, guiding)
            scale = _filled(self._scale, count, x.device)
            phi = _filled(self._rescale, count, x.device) if self._rescale else None
            estimate = apply_guidance(estimate, unconditional, x, alpha, sigma, model.prediction_type, scale, phi)
        # After guidance: a guided x̂_0 leaves the range of pixels more often.
        return model.clipping(estimate, x, alpha, sigma, torch.full((count,), guiding is not None, device=x.device))


def _filled(value: float, count: int, device: torch.device) -> Tensor:
    return torch.full((count,), float(value), dtype=torch.float32, device=device)
