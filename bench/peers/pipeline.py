"""DDIM for a class-conditional `UNet2DModel`, put together from diffusers' network and scheduler.

diffusers' own `DDIMPipeline` knows no classes and no guidance; its loop is this one otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from bench.peers.network import Manner, network


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
    """Not for two threads at a time: the scheduler holds the timesteps of one run.

    sizes: rows of the network for which it is compiled, where it is; guidance takes two an image.
    """

    def __init__(self, folder: str, manner: Manner, sizes: Sequence[int]) -> None:
        self.manner = manner
        self.network = network(folder, manner, sizes)
        self.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")

    def __call__(self, pictures: Sequence[Picture]) -> list[Image.Image]:
        """Pictures of one group, in one batch."""
        with self.manner.without_gradients():
            return _images(self._sampled(pictures))

    def _sampled(self, pictures: Sequence[Picture]) -> Tensor:
        config, device = self.network.config, self.manner.device
        shape = (1, config.in_channels, config.sample_size, config.sample_size)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(p.seed)) for p in pictures]
        x = torch.cat(noise).to(device)
        labels = torch.tensor([p.label for p in pictures], device=device)
        scales = torch.tensor([p.guidance_scale for p in pictures], device=device)[:, None, None, None]
        self.scheduler.set_timesteps(pictures[0].steps)
        evaluate = self._guided if pictures[0].group[1] else self._plain
        times = self.scheduler.timesteps[:, None].repeat(1, len(pictures)).to(device)  # (steps, B)
        for step, t in zip(self.scheduler.timesteps, times, strict=True):
            x = self.scheduler.step(evaluate(x, t, labels, scales), step, x).prev_sample
        return x

    def _plain(self, x: Tensor, t: Tensor, labels: Tensor, scales: Tensor) -> Tensor:
        return self.network(x, t, labels)

    def _guided(self, x: Tensor, t: Tensor, labels: Tensor, scales: Tensor) -> Tensor:
        """Both branches in one batch (Ho and Salimans 2022, arXiv:2207.12598); the last class is "no label"."""
        nothing = torch.full_like(labels, self.network.config.num_class_embeds - 1)
        both = self.network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([nothing, labels]))
        without, conditional = both.chunk(2)
        return without + scales * (conditional - without)


def png(image: Image.Image) -> bytes:
    """The file that a client gets."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _images(x: Tensor) -> list[Image.Image]:
    """(B, C, H, W) in ±1 to pictures, rounded as diffusers' `numpy_to_pil` does."""
    pixels = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture) for picture in pixels]
