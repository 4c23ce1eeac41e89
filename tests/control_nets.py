"""ControlNets with weights drawn at random for the pipelines of `tests.text_pipelines`, saved by diffusers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import ControlNetModel
from PIL import Image

from tests.text_pipelines import SIZE, UNET, XL_UNET, save_pipeline, stir

OF_A_UNET_ALONE = ("sample_size", "up_block_types")
EMBEDDING = (8, 12)  # channels of the layers on the control picture; one halving for a pipeline of 8 latents


def control_config(unet: dict[str, Any] = UNET, **changes: Any) -> dict[str, Any]:
    """The config of a ControlNet for a U-Net."""
    shared = {name: value for name, value in unet.items() if name not in OF_A_UNET_ALONE}
    return {**shared, "conditioning_embedding_out_channels": EMBEDDING, **changes}


def save_control_net(folder: Path, *, seed: int = 0, unet: dict[str, Any] = UNET, **changes: Any) -> ControlNetModel:
    """Save a ControlNet for a U-Net into a folder, and return it. changes: of its config."""
    network = ControlNetModel(**control_config(unet, **changes)).eval()
    stir(network, seed)
    network.save_pretrained(folder)
    return network


def controlled_pipeline(folder: Path, model: str) -> tuple[str, ...]:
    """Save a pipeline with the ControlNets `edges` and `pose`; the options with which `denoised serve` serves them."""
    save_pipeline(folder / model)
    save_control_net(folder / "nets/edges", seed=1)
    save_control_net(folder / "nets/pose", seed=2)
    return "--model", str(folder / model), "--controlnets", str(folder / "nets")


def save_xl_control_net(folder: Path, *, seed: int = 0) -> ControlNetModel:
    """The same for `XL_UNET`."""
    return save_control_net(folder, seed=seed, unet=XL_UNET)


def control_image(seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """An RGB picture of random pixels. size: width, height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    """The picture as a file."""
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()
