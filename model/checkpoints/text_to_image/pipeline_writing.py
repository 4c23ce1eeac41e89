"""Write a text-to-image model in the layout of diffusers' `StableDiffusionPipeline`.

model_index.json                                    which pipeline and classes
unet/, vae/                                         config.json, diffusion_pytorch_model.safetensors
text_encoder/                                       config.json, model.safetensors
tokenizer/                                          vocab.json, merges.txt, tokenizer_config.json
scheduler/scheduler_config.json                     β schedule, prediction type, spacing
model_card.json                                     ours: defaults, preview, data, training
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from denoised.model.checkpoints.atomic import write_atomically, write_text_atomically
from denoised.model.checkpoints.card_file import CardFile, write_card_file
from denoised.model.checkpoints.folders import MODEL_INDEX, SCHEDULER_CONFIG
from denoised.model.checkpoints.weight_files import WEIGHTS
from denoised.model.checkpoints.writing import DIFFUSERS_VERSION
from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig
from denoised.model.networks.text_encoder.text_encoder_config import TextEncoderConfig
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig

TEXT_ENCODER_WEIGHTS = "model.safetensors"  # transformers' name


@dataclass(frozen=True)
class PipelineContent:
    """What a folder holds besides its tokenizer.

    Attributes:
        unet, autoencoder, text_encoder: configs.
        unet_weights, autoencoder_weights, text_encoder_weights: state dicts.
        scheduler: the content of `scheduler_config.json`.
        card: the content of `model_card.json`.
    """

    unet: TextUNetConfig
    unet_weights: Mapping[str, Tensor]
    autoencoder: AutoencoderConfig
    autoencoder_weights: Mapping[str, Tensor]
    text_encoder: TextEncoderConfig
    text_encoder_weights: Mapping[str, Tensor]
    scheduler: Mapping[str, Any]
    card: CardFile


def save_pipeline(folder: Path, content: PipelineContent) -> None:
    """Write every file but the tokenizer's; each file appears complete or not at all."""
    scheduler = dict(content.scheduler)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    # With "dtype", transformers computes in float32 whatever the type of the stored weights.
    text_encoder = {"architectures": ["CLIPTextModel"], "dtype": "float32", **content.text_encoder.to_dict()}
    save_network(folder / "unet", "UNet2DConditionModel", content.unet.to_dict(), content.unet_weights)
    save_autoencoder(folder / "vae", content.autoencoder, content.autoencoder_weights)
    save_weights(folder / "text_encoder" / TEXT_ENCODER_WEIGHTS, content.text_encoder_weights)
    save_json(folder / "text_encoder" / "config.json", text_encoder)
    save_json(folder / SCHEDULER_CONFIG, scheduler)
    write_card_file(folder, content.card)
    save_json(folder / MODEL_INDEX, index)


def save_autoencoder(folder: Path, config: AutoencoderConfig, weights: Mapping[str, Tensor]) -> None:
    """Write the folder of an autoencoder, its config last."""
    save_network(folder, "AutoencoderKL", config.to_dict(), weights)


def save_network(folder: Path, class_name: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write `config.json` and the weights of a network that diffusers calls `class_name`, the config last."""
    save_weights(folder / WEIGHTS, weights)
    save_json(folder / "config.json", {"_class_name": class_name, "_diffusers_version": DIFFUSERS_VERSION, **config})


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")
