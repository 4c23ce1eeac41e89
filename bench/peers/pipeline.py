"""DDIM for a class-conditional `UNet2DModel`, put together from diffusers' network and scheduler.

diffusers' own `DDIMPipeline` knows no classes and no guidance; its loop is this one otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """One picture to make. guidance_scale 1: without guidance."""

    label: int
    seed: int
    steps: int
    guidance_scale: float

    @property
    def group(self) -> tuple[int, bool]:
        """What pictures made in one batch have in common: the number of steps, and whether they are guided."""
        return self.steps, self.guidance_scale != 1.0


class ClassConditionalDDIM:
    """Not for two threads at a time: the scheduler holds the timesteps of one run."""

    def __init__(self, folder: str) -> None:
        self.unet = UNet2DModel.from_pretrained(
            folder, subfolder="unet", use_safetensors=True, low_cpu_mem_usage=False
        ).eval()
        self.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Picture]) -> list[Image.Image]:
        """Pictures of one group, in one batch."""
        config = self.unet.config
        shape = (1, config.in_channels, config.sample_size, config.sample_size)
        x = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(p.seed)) for p in pictures])
        labels = torch.tensor([p.label for p in pictures])
        scales = torch.tensor([p.guidance_scale for p in pictures])[:, None, None, None]
        self.scheduler.set_timesteps(pictures[0].steps)
        guided = pictures[0].group[1]
        for t in self.scheduler.timesteps:
            output = self._guided(x, t, labels, scales) if guided else self.unet(x, t, class_labels=labels).sample
            x = self.scheduler.step(output, t, x).prev_sample
        return [_image(picture) for picture in x]

    def _guided(self, x: Tensor, t: Tensor, labels: Tensor, scales: Tensor) -> Tensor:
        """Both branches in one batch (Ho and Salimans 2022, arXiv:2207.12598); the last class is "no label"."""
        nothing = torch.full_like(labels, self.unet.config.num_class_embeds - 1)
        both = self.unet(torch.cat([x, x]), t, class_labels=torch.cat([nothing, labels])).sample
        without, conditional = both.chunk(2)
        return without + scales * (conditional - without)


def png(image: Image.Image) -> bytes:
    """The file that a client gets."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _image(x: Tensor) -> Image.Image:
    """(C, H, W) in ±1 to a picture, rounded as diffusers' `numpy_to_pil` does."""
    pixels = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
