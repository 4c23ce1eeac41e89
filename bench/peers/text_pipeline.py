"""diffusers' `StableDiffusionPipeline` with DDIM, as tutorials use it, and the choice of the pipeline by the folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from bench.peers.network import NetworkOptions
from bench.peers.pipeline import ClassConditionalDDIM, ImageParameters

Pipeline = Callable[[Sequence[ImageParameters]], list[Image.Image]]


def load_pipeline(folder: str, options: NetworkOptions, sizes: Sequence[int]) -> Pipeline:
    """The pipeline of a folder. sizes: as `ClassConditionalDDIM` takes them."""
    index = Path(folder) / "model_index.json"
    if index.exists() and json.loads(index.read_text())["_class_name"] == "StableDiffusionPipeline":
        return TextToImage(folder)
    return ClassConditionalDDIM(folder, options, sizes)


class TextToImage:
    """A pipeline on the CPU for one thread at a time, since the scheduler holds the timesteps of one run."""

    def __init__(self, folder: str) -> None:
        self.pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        self.pipeline.scheduler = DDIMScheduler.from_config(self.pipeline.scheduler.config)
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, images: Sequence[ImageParameters]) -> list[Image.Image]:
        """Make the images of one group, in one batch."""
        made: list[Image.Image] = self.pipeline(
            [each.prompt for each in images],
            num_inference_steps=images[0].steps,
            guidance_scale=images[0].guidance_scale,
            generator=[torch.Generator().manual_seed(each.seed) for each in images],
        ).images
        return made
