"""Write a model folder in the layout of a diffusers pipeline.

model_index.json                             which pipeline and classes
unet/config.json                             `UNetConfig`
unet/diffusion_pytorch_model.safetensors     the weights
scheduler/scheduler_config.json              β schedule, prediction type, spacing, clipping
model_card.json                              ours: labels, defaults, data, training
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from denoised.model.checkpoints.atomic import write_atomically, write_text_atomically
from denoised.model.checkpoints.card_file import CardFile, write_card_file
from denoised.model.checkpoints.folders import MODEL_INDEX, SCHEDULER_CONFIG, UNET_CONFIG
from denoised.model.checkpoints.weight_files import WEIGHTS
from denoised.model.diffusion.noise import beta_ends
from denoised.model.networks.unet.unet_config import UNetConfig

DIFFUSERS_VERSION = "0.42.1"  # the release whose layout and defaults this package follows


def save_model(
    folder: Path, config: UNetConfig, weights: Mapping[str, Tensor], scheduler: Mapping[str, Any], card: CardFile
) -> None:
    """Write a model folder; each file appears complete or not at all.

    weights: the network's state dict; scheduler: the content of `scheduler_config.json`, see `scheduler_config`.
    """
    index = {
        "_class_name": "DDIMPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    unet = {"_class_name": "UNet2DModel", "_diffusers_version": DIFFUSERS_VERSION, **config.to_dict()}
    for path in (UNET_CONFIG, SCHEDULER_CONFIG):
        (folder / path.parent).mkdir(parents=True, exist_ok=True)
    write_atomically(
        folder / UNET_CONFIG.parent / WEIGHTS, lambda path: save_file(dict(weights), path, metadata={"format": "pt"})
    )
    for name, content in ((MODEL_INDEX, index), (UNET_CONFIG, unet), (SCHEDULER_CONFIG, dict(scheduler))):
        write_text_atomically(folder / name, json.dumps(content, indent=2) + "\n")
    write_card_file(folder, card)


def scheduler_config(
    beta_schedule: str, prediction_type: str, timesteps: int = 1000, *, zero_snr: bool = False
) -> dict[str, Any]:
    """The content of `scheduler_config.json` for a model trained here.

    Trailing spacing starts sampling at the last timestep, as Lin et al. 2023 (arXiv:2305.08891) recommend.
    beta_schedule: a key of `BETAS`; prediction_type: one of `PREDICTION_TYPES`.
    """
    start, end = beta_ends(timesteps)
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": timesteps,
        "beta_schedule": beta_schedule,
        "beta_start": start,
        "beta_end": end,
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "rescale_betas_zero_snr": zero_snr,
    }
