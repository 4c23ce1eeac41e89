"""DDIM for a class-conditional `UNet2DModel`, built from diffusers' network and scheduler.

diffusers' own `DDIMPipeline` supports neither classes nor guidance; otherwise its loop is the same.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from bench.peers.network import NetworkOptions, load_network


@dataclass(frozen=True)
class ImageParameters:
    """The parameters of one image. guidance_scale: 1 means no guidance; prompt: for a text-to-image model."""

    label: int
    seed: int
    steps: int
    guidance_scale: float
    prompt: str | None = None

    @property
    def group(self) -> tuple[int, bool]:
        """What the images of one batch have in common: the number of steps, and whether they are guided."""
        return self.steps, self.guidance_scale != 1.0


class ClassConditionalDDIM:
    """A pipeline for one thread at a time, since the scheduler holds the timesteps of one run.

    sizes: batch sizes that the network is compiled for, if it is compiled; a guided image takes two rows.
    """

    def __init__(self, folder: str, options: NetworkOptions, sizes: Sequence[int]) -> None:
        self.options = options
        self.network = load_network(folder, options, sizes)
        self.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")

    def __call__(self, images: Sequence[ImageParameters]) -> list[Image.Image]:
        """Make the images of one group, in one batch."""
        with self.options.without_gradients():
            return _to_images(self._sample(images))

    def _sample(self, images: Sequence[ImageParameters]) -> Tensor:
        config, device = self.network.config, self.options.device
        shape = (1, config.in_channels, config.sample_size, config.sample_size)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(p.seed)) for p in images]
        x = torch.cat(noise).to(device)
        labels = torch.tensor([p.label for p in images], device=device)
        scales = torch.tensor([p.guidance_scale for p in images], device=device)[:, None, None, None]
        self.scheduler.set_timesteps(images[0].steps)
        evaluate = self._evaluate_guided if images[0].group[1] else self._evaluate
        times = self.scheduler.timesteps[:, None].repeat(1, len(images)).to(device)  # (steps, B)
        for step, t in zip(self.scheduler.timesteps, times, strict=True):
            x = self.scheduler.step(evaluate(x, t, labels, scales), step, x).prev_sample
        return x

    def _evaluate(self, x: Tensor, t: Tensor, labels: Tensor, scales: Tensor) -> Tensor:
        return self.network(x, t, labels)

    def _evaluate_guided(self, x: Tensor, t: Tensor, labels: Tensor, scales: Tensor) -> Tensor:
        """Both branches in one batch (Ho and Salimans 2022, arXiv:2207.12598); the last class is "no label"."""
        null = torch.full_like(labels, self.network.config.num_class_embeds - 1)
        both = self.network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, labels]))
        unconditional, conditional = both.chunk(2)
        return unconditional + scales * (conditional - unconditional)


def encode_png(image: Image.Image) -> bytes:
    """The PNG file sent to the client."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _to_images(x: Tensor) -> list[Image.Image]:
    """Convert (B, C, H, W) in [−1, 1] to images, rounded as by diffusers' `numpy_to_pil`."""
    pixels = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in pixels]
