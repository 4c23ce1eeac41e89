"""Making the images that are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from denoised.model.diffusion.level_choice import MODELS_OWN, LevelChoice
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.sampling import sample

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class GenerationSettings:
    """How images are sampled.

    guidance_interval: the noise levels ρ in (low, high] at which guidance is on; None: all.
    levels: the noise levels that are visited.
    seed: of the first image; image k uses seed + k.
    batch: images per evaluation of the network.
    precision: of the network's arithmetic, one of PRECISIONS.
    """

    sampler: str = "ddim"
    steps: int = 50
    eta: float = 0.0
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    levels: LevelChoice = MODELS_OWN
    seed: int = 0
    batch: int = 64
    precision: str = "float32"


def balanced_labels(count: int, classes: int) -> list[int | None]:
    """Labels for `count` images, evenly distributed over the classes; None for each if there are no classes."""
    return [k % classes if classes else None for k in range(count)]


def generate_images(
    model: PixelModel,
    labels: Sequence[int | None],
    settings: GenerationSettings,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """One image per label, rounded to bytes as the service does: (N, C, H, W) uint8.

    advance: called with the number of images after each batch.

    Raises:
        PlanError: for a sampler, steps, η or levels that the model does not offer.
    """
    images: list[Tensor] = []
    for start in range(0, len(labels), settings.batch):
        part = labels[start : start + settings.batch]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            x0 = sample(
                model,
                part,
                seed=settings.seed + start,
                sampler=settings.sampler,
                steps=settings.steps,
                eta=settings.eta,
                guidance_scale=settings.guidance_scale,
                guidance_interval=settings.guidance_interval,
                levels=settings.levels,
            )
        images.append(torch.from_numpy(model.decode(x0)))
        advance(len(part))
    return torch.cat(images).permute(0, 3, 1, 2).contiguous()


def uniform_noise(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Images (count, C, H, W) whose bytes are all drawn uniformly: a baseline that any model should beat."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
