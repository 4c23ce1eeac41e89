"""Classifier-free guidance: two estimates of one image, with and without its label, made one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from denoised.model.diffusion.noise import Estimate, estimate, training_target


def is_guided(scale: float) -> bool:
    """Whether a guidance scale asks for an unconditional estimate too; 1 leaves the conditional one."""
    return scale != 1.0


def merge(
    conditional: Estimate,
    unconditional: Estimate,
    x: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction_type: str,
    scale: Tensor,
    amount: Tensor | None,
) -> Estimate:
    """Guidance of images x (B, C, H, W) at levels α, σ (B,), each with its own scale and its own rescaling.

    scale: (B,) of `guide`; amount: (B,) of `rescale`, None where nobody asks for that.
    """
    guided = guide(conditional, unconditional, scale)
    if amount is None:
        return guided
    return rescale(guided, conditional, x, alpha, sigma, prediction_type, amount)


def guide(conditional: Estimate, unconditional: Estimate, scale: Tensor) -> Estimate:
    """uncond + s·(cond − uncond) (Ho & Salimans 2022, arXiv:2207.12598).

    scale: (B,), 1 leaves the conditional estimate. Linear, so x̂_0 and ε̂ are merged alike; a learned
    variance is that of the conditional estimate.
    """
    s = scale.view(-1, 1, 1, 1)
    return replace(
        conditional,
        x0=unconditional.x0 + s * (conditional.x0 - unconditional.x0),
        epsilon=unconditional.epsilon + s * (conditional.epsilon - unconditional.epsilon),
    )


def rescale(
    guided: Estimate,
    conditional: Estimate,
    x: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction_type: str,
    amount: Tensor,
) -> Estimate:
    """Give what the network predicts its spread back, that guidance has widened (Lin et al. 2023, arXiv:2305.08891,
    eq. 14–16): multiplied by φ·std(cond)/std(guided) + 1 − φ, image by image.

    x: (B, C, H, W) at levels α, σ (B,); amount: φ (B,), 0 leaves an image's estimate to the bit, 0.7 is the
    paper's value; an output without any spread stays as it is.
    """
    output, plain = (
        training_target(known.x0, known.epsilon, alpha, sigma, prediction_type) for known in (guided, conditional)
    )
    wide, narrow = _spreads(output), _spreads(plain)
    ratio = torch.where(wide > 0, narrow / wide, torch.ones_like(wide))
    factor = (amount * ratio + 1 - amount)[:, None, None, None]
    rescaled = estimate(factor * output, x, alpha, sigma, prediction_type)
    touched = (amount > 0)[:, None, None, None]
    return replace(
        guided,
        x0=torch.where(touched, rescaled.x0, guided.x0),
        epsilon=torch.where(touched, rescaled.epsilon, guided.epsilon),
    )


def _spreads(output: Tensor) -> Tensor:
    """The standard deviation of each image (B,), one at a time: a sum's order must not depend on the batch."""
    return torch.stack([image.std() for image in output])
