"""Small pipelines of the Stable Diffusion family with weights drawn at random, saved by diffusers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from denoised.model.text.tokenizer import END_TOKEN, START_TOKEN

SIZE = 16  # pixels along each side; 8 latents
CORPUS = [
    "a photo of an astronaut riding a horse on mars, highly detailed, 8k, trending on artstation",
    "an oil painting of a small red house by the sea at sunset, soft light, cinematic lighting",
    "the quick brown fox jumps over the lazy dog, and the dog doesn't mind; it's 1234567890 o'clock",
    "portrait of an old woman with a blue scarf, photograph, bokeh, 35mm, f/1.8 -- très détaillé",
    "грустный кот сидит на окне 猫が窓に座っている 🐱🐶🔥",
]
PROMPT = "an oil painting of a small red house"
NEGATIVE_PROMPT = "a lazy dog"
# Stable Diffusion 1's scheduler file, with gentler β: a network that was not trained predicts noise badly.
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.0001,
    "beta_end": 0.002,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
UNET: dict[str, Any] = {
    "sample_size": SIZE // 2,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}
# SDXL's, shrunken: two encoders of 32 and 24 channels, and a pooled vector of 20 next to six size ids.
XL_UNET: dict[str, Any] = {
    **UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 32 + 24,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": SIZE,
}


def write_vocabulary(folder: Path) -> None:
    """`vocab.json` and `merges.txt` of a small vocabulary in CLIP's format: bytes, bytes that end a word, merges."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=700, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    merges = [
        pair if isinstance(pair, list) else pair.split(" ")
        for pair in json.loads(tokenizer.to_str())["model"]["merges"]
    ]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["!", *(each for each in alphabet if each != "!"), *(f"{each}</w>" for each in alphabet)]
    tokens += ["".join(pair) for pair in merges]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*tokens, START_TOKEN, END_TOKEN]))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def stir(network: nn.Module, seed: int) -> None:
    """Replace every weight by a random one, so that no norm is the identity and no bias is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(network.state_dict().items()):
        if not weight.is_floating_point():
            continue
        fan_in = max(1, weight[0].numel()) if weight.dim() > 1 else 1
        scale = 0.7 / fan_in**0.5 if weight.dim() > 1 else 0.2
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale + offset)


def build_text_encoder(tokenizer: CLIPTokenizer, kind: type = CLIPTextModel, **settings: Any) -> nn.Module:
    """A text encoder of 32 channels and 3 layers for a tokenizer."""
    config = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, **settings}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    encoder: nn.Module = kind(CLIPTextConfig(vocab_size=len(tokenizer), **ids, **config))
    return encoder


def build_pipeline(
    tokenizer_folder: Path,
    *,
    unet: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
) -> StableDiffusionPipeline:
    """A `StableDiffusionPipeline` of 16×16 pixels; its picture depends on the prompt.

    tokenizer_folder: where the tokenizer's vocabulary is written.
    unet, vae, scheduler, text: keys of their configs that differ from `UNET`, `AUTOENCODER`, `SCHEDULER` and those of
        `build_text_encoder`.
    """
    write_vocabulary(tokenizer_folder)
    tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder), model_max_length=77)
    parts = {
        "unet": UNet2DConditionModel(**{**UNET, **(unet or {})}),
        "vae": AutoencoderKL(**{**AUTOENCODER, **(vae or {})}),
        "text_encoder": build_text_encoder(tokenizer, **(text or {})),
    }
    for seed, part in enumerate(parts.values()):
        stir(part.eval(), seed)
    return StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=PNDMScheduler.from_config({**SCHEDULER, **(scheduler or {})}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_xl_pipeline(
    tokenizer_folder: Path,
    *,
    unet: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    text: Sequence[dict[str, Any]] = ({}, {}),
) -> StableDiffusionXLPipeline:
    """A `StableDiffusionXLPipeline` of 16×16 pixels with two tokenizers, which pad differently, and two encoders."""
    write_vocabulary(tokenizer_folder)
    tokenizers = [
        CLIPTokenizer.from_pretrained(str(tokenizer_folder), model_max_length=77, **options)
        for options in ({}, {"pad_token": "!"})
    ]
    second = {"hidden_size": 24, "projection_dim": 20, "hidden_act": "gelu", **text[1]}
    parts = {
        "unet": UNet2DConditionModel(**{**XL_UNET, **(unet or {})}),
        "vae": AutoencoderKL(**{**AUTOENCODER, "scaling_factor": 0.13025, **(vae or {})}),
        "text_encoder": build_text_encoder(tokenizers[0], **text[0]),
        "text_encoder_2": build_text_encoder(tokenizers[1], CLIPTextModelWithProjection, **second),
    }
    for seed, part in enumerate(parts.values()):
        stir(part.eval(), seed)
    return StableDiffusionXLPipeline(
        **parts,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=EulerDiscreteScheduler.from_config({**SCHEDULER, "timestep_spacing": "leading"}),
        add_watermarker=False,
    )


def build_lcm_pipeline(tokenizer_folder: Path) -> LatentConsistencyModelPipeline:
    """A `LatentConsistencyModelPipeline`, whose U-Net takes the guidance scale."""
    parts = build_pipeline(tokenizer_folder, unet={"time_cond_proj_dim": 32}).components
    kept = {name: part for name, part in parts.items() if name not in ("scheduler", "image_encoder")}
    return LatentConsistencyModelPipeline(
        **kept, scheduler=LCMScheduler.from_config(SCHEDULER), requires_safety_checker=False
    )


def save_pipeline(
    folder: Path,
    *,
    variant: str | None = None,
    shard: str = "10GB",
    build: Callable[..., Any] = build_pipeline,
    **changes: Any,
) -> Any:
    """Save a pipeline of `build_pipeline` or of `build` into a folder, and return it.

    shard: the largest size of a file of weights.
    """
    vocabulary = folder / "vocabulary"
    vocabulary.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline: DiffusionPipeline = build(vocabulary, **changes)
        pipeline.set_progress_bar_config(disable=True)
        if variant is not None:
            pipeline.to({"fp16": torch.float16, "bf16": torch.bfloat16}[variant])
        pipeline.save_pretrained(folder, variant=variant, max_shard_size=shard)
    for path in (*vocabulary.iterdir(), vocabulary):
        path.unlink() if path.is_file() else path.rmdir()
    return pipeline


def picture_of(pipeline: Any, seed: int, **options: Any) -> npt.NDArray[np.uint8]:
    """(H, W, 3) the picture that diffusers makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = torch.Generator().manual_seed(seed)
        picture = pipeline(generator=generator, output_type="np", **options).images[0]
    return np.asarray((picture * 255).round(), dtype=np.uint8)
