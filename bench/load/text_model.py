"""The text-to-image model that the benchmark serves."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.load.processes import ROOT
from denoised.model.checkpoints.card_file import CardFile, Defaults
from denoised.model.checkpoints.text_to_image.pipeline_writing import PipelineContent, save_pipeline
from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.networks.text_encoder.text_encoder import TextEncoder
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.training.text_to_image.text_presets import (
    TEXT_PRESETS,
    autoencoder_config,
    text_encoder_config,
    text_unet_config,
)
from denoised.model.training.text_to_image.text_training_config import TextTrainingConfig
from denoised.model.training.text_to_image.vocabulary import build_vocabulary, learn_merges, save_tokenizer

BUNDLED = ROOT / "model" / "zoo" / "emoji"
SIDE = 64  # pixels
TOKENS = 24  # of a caption
VOCABULARY = 2250  # tokens, at most
CAPTIONS = tuple(
    f"a {subject}, {style} style, on a {color} background"
    for subject in ("goat", "rocket", "hot dog", "octopus", "thinking face")
    for style, color in (("fluent", "teal"), ("noto", "yellow"), ("flat", "purple"))
)


def text_model_folder(scratch: Path) -> Path:
    """The bundled emoji model; while there is none, a folder of its shape with weights drawn at random."""
    return BUNDLED if BUNDLED.is_dir() else write_random_model(scratch / "emoji")


def write_random_model(folder: Path) -> Path:
    """Write a model of the emoji model's shape with weights drawn at random, which take as long to evaluate."""
    preset, merges = TEXT_PRESETS["medium"], learn_merges(CAPTIONS, VOCABULARY)
    torch.manual_seed(0)
    unet = TextUNet(text_unet_config(preset, SIDE // 4))
    autoencoder = Autoencoder(autoencoder_config(preset, SIDE))
    encoder = TextEncoder(text_encoder_config(preset, len(build_vocabulary(merges)), TOKENS), projected=False)
    save_tokenizer(folder / "tokenizer", merges, TOKENS)
    content = PipelineContent(
        unet=unet.config,
        unet_weights=unet.state_dict(),
        autoencoder=autoencoder.config,
        autoencoder_weights=autoencoder.state_dict(),
        text_encoder=encoder.config,
        text_encoder_weights=encoder.state_dict(),
        scheduler=TextTrainingConfig().scheduler_file,
        card=CardFile(description="weights drawn at random", default=Defaults(sampler="ddim", steps=25)),
    )
    save_pipeline(folder, content)
    return folder
