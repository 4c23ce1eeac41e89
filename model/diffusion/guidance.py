"""Classifier-free guidance: combine two estimates of one image, with and without its label."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from denoised.model.diffusion.predictions import Estimate, estimate_from_output, training_target


def is_guided(scale: float) -> bool:
    """Whether a guidance scale asks for an unconditional estimate too; 1 gives the conditional one."""
    return scale != 1.0


def is_within(ratio: float, interval: tuple[float, float] | None) -> bool:
    """Whether guidance applies at the noise level ρ = σ/α: low < ρ ≤ high (Kynkäänniemi et al. 2024, arXiv:2404.07724).

    interval: (low, high); None is all levels.
    """
    return interval is None or interval[0] < ratio <= interval[1]


@dataclass(frozen=True)
class ImageGuidance:
    """The second guidance of some images of a batch, toward an input image.

    Attributes:
        index: (D,) their indices in the batch.
        scale: (D,) s_image.
        estimate: Of D images, with the input image alone.
    """

    index: Tensor
    scale: Tensor
    estimate: Estimate


def apply_guidance(
    conditional: Estimate,
    unconditional: Estimate,
    x_t: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction_type: str,
    scale: Tensor,
    phi: Tensor | None,
    toward_image: ImageGuidance | None = None,
) -> Estimate:
    """Guidance and then rescaling, each image by its own amounts.

    x_t: (B, C, H, W) at levels alpha, sigma (B,).
    scale: (B,), see `guide`.
    phi: (B,), see `rescale`; None if no image of the batch is rescaled.
    toward_image: of the images with a second guidance.
    """
    guided = guide(conditional, unconditional, scale)
    if toward_image is not None:
        own = toward_image.index
        twice = guide_twice(
            conditional.select(own), toward_image.estimate, unconditional.select(own), scale[own], toward_image.scale
        )
        guided = guided.replace(own, twice)
    if phi is None:
        return guided
    return rescale(guided, conditional, x_t, alpha, sigma, prediction_type, phi)


def guide(conditional: Estimate, unconditional: Estimate, scale: Tensor) -> Estimate:
    """uncond + s·(cond − uncond) (Ho & Salimans 2022, arXiv:2207.12598, eq. 6 with s = 1 + w).

    scale: s (B,), 1 gives the conditional estimate. At a given x_t, ε̂ and x̂_0 are affine in each other, so
    both are combined alike. A learned variance is the conditional estimate's.
    """
    s = scale.view(-1, 1, 1, 1)  # (B, 1, 1, 1)
    return replace(
        conditional,
        x0=unconditional.x0 + s * (conditional.x0 - unconditional.x0),
        epsilon=unconditional.epsilon + s * (conditional.epsilon - unconditional.epsilon),
    )


def guide_twice(
    conditional: Estimate, image_alone: Estimate, unconditional: Estimate, text_scale: Tensor, image_scale: Tensor
) -> Estimate:
    """uncond + s_image·(image − uncond) + s_text·(cond − image) (Brooks et al. 2023, arXiv:2211.09800, eq. 3).

    conditional: with text and image; image_alone: with the image only; unconditional: with neither.
    text_scale, image_scale: s_text and s_image (B,). With s_image = 1 this is `guide` from the image alone.
    """
    text, image = text_scale.view(-1, 1, 1, 1), image_scale.view(-1, 1, 1, 1)  # (B, 1, 1, 1)

    def combined(cond: Tensor, alone: Tensor, uncond: Tensor) -> Tensor:
        return uncond + image * (alone - uncond) + text * (cond - alone)

    return replace(
        conditional,
        x0=combined(conditional.x0, image_alone.x0, unconditional.x0),
        epsilon=combined(conditional.epsilon, image_alone.epsilon, unconditional.epsilon),
    )


def rescale(
    guided: Estimate,
    conditional: Estimate,
    x_t: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction_type: str,
    phi: Tensor,
) -> Estimate:
    """Bring the standard deviation of the network's output back toward the unguided one, image by image.

    Guidance widens it. The output is multiplied by φ·std(cond)/std(guided) + 1 − φ (Lin et al. 2023,
    arXiv:2305.08891, eq. 14–16). An output of standard deviation 0 stays as it is.

    x_t: (B, C, H, W) at levels alpha, sigma (B,).
    phi: φ (B,) in 0 … 1; 0 leaves an image's estimate unchanged to the bit, 0.7 is the paper's value.
    """
    # Back to what the network predicts (ε, v or x_0), where the paper rescales.
    guided_output, plain_output = (
        training_target(each.x0, each.epsilon, alpha, sigma, prediction_type) for each in (guided, conditional)
    )
    guided_std, plain_std = _std_per_image(guided_output), _std_per_image(plain_output)  # eq. 14
    ratio = torch.where(guided_std > 0, plain_std / guided_std, torch.ones_like(guided_std))  # eq. 15
    factor = (phi * ratio + 1 - phi)[:, None, None, None]  # eq. 16
    rescaled = estimate_from_output(factor * guided_output, x_t, alpha, sigma, prediction_type)
    # Rounding alone would change the images with φ = 0: these keep their estimate.
    is_rescaled = (phi > 0)[:, None, None, None]
    return replace(
        guided,
        x0=torch.where(is_rescaled, rescaled.x0, guided.x0),
        epsilon=torch.where(is_rescaled, rescaled.epsilon, guided.epsilon),
    )


def _std_per_image(output: Tensor) -> Tensor:
    """The standard deviation of each image (B,), one at a time: the order of a sum must not depend on the batch."""
    return torch.stack([image.std() for image in output])
