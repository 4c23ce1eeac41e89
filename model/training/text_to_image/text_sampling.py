"""Sample pictures from captions during training.

The running batch in `worker.engine.engine` does the same for every job at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.guidance import guide
from denoised.model.diffusion.plans import advance
from denoised.model.diffusion.predictions import Estimate, estimate_from_output
from denoised.model.diffusion.samplers import compile_plan
from denoised.model.training.text_to_image.text_trainer import CaptionedLatents, TextToImageNet
from denoised.model.training.text_to_image.text_training_config import PREDICTION_TYPE, TextTrainingConfig

SAMPLER, STEPS, GUIDANCE_SCALE = "dpmpp_2m", 20, 3.0


@torch.no_grad()
def sample_captions(
    net: TextToImageNet,
    data: CaptionedLatents,
    config: TextTrainingConfig,
    captions: Sequence[str],
    *,
    sampler: str = SAMPLER,
    steps: int = STEPS,
) -> npt.NDArray[np.uint8]:
    """One picture for each caption, guided, picture k from seed k: (B, H, W, 3) bytes.

    sampler: one that draws no noise on the way.
    """
    plan = compile_plan(sampler, config.schedule, steps, Grid(spacing="trailing"))
    device, count = next(net.parameters()).device, len(captions)
    shape = data.latents.shape[1:]
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in range(count)]
    registers = torch.zeros(count, plan.registers, *shape, device=device)  # (B, R, C, H, W), x first
    registers[:, 0] = plan.initial_scale * torch.stack(noise).to(device)
    # Captions and empty captions in one batch: (2B, N).
    tokens = data.encode_captions([*captions, *[""] * count]).to(device)
    context = net.text_encoder(tokens).last
    scale = torch.full((count,), GUIDANCE_SCALE, device=device)
    for row in range(plan.evaluations):
        x = registers[:, 0]
        both = _estimate(net, torch.cat([x, x]), plan.t[row], plan.alpha[row], plan.sigma[row], context)
        # The rows with captions come first, then those without (B each).
        estimate = guide(*both.split(count), scale)
        # (B, R, R + 3): the next registers from the registers, x̂_0, ε̂ and z.
        matrices = torch.from_numpy(plan.matrices[row]).float().to(device).expand(count, -1, -1)
        registers = advance(registers, estimate, torch.zeros_like(x), matrices)
    latents = data.autoencoder.config.unscale(registers[:, 0])
    # (B, 3, H, W): [−1, 1] → bytes.
    pixels = ((data.autoencoder.decode(latents).cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy()


def _estimate(net: TextToImageNet, x: Tensor, t: float, alpha: float, sigma: float, context: Tensor) -> Estimate:
    """The estimate of x (B, C, H, W) at one level."""
    levels = (torch.full((len(x),), float(value), device=x.device) for value in (t, alpha, sigma))
    times, alphas, sigmas = levels
    return estimate_from_output(net.unet(x, times, context), x, alphas, sigmas, PREDICTION_TYPE)
