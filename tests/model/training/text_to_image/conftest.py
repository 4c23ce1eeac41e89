"""What a tiny text-to-image model is trained on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.text.tokenizer import TextTokenizer
from denoised.model.training.emoji.captions import caption_corpus
from denoised.model.training.emoji.emoji_pictures import EmojiPictures
from denoised.model.training.emoji.held_out import held_out_combinations
from denoised.model.training.text_to_image.text_presets import TEXT_PRESETS, autoencoder_config
from denoised.model.training.text_to_image.text_trainer import CaptionedLatents
from denoised.model.training.text_to_image.vocabulary import learn_merges, save_tokenizer

SIDE = 8  # of the latents


@pytest.fixture(scope="session")
def captioned(
    pictures: EmojiPictures, tmp_path_factory: pytest.TempPathFactory, stir: Callable[..., None]
) -> CaptionedLatents:
    """Random latents of five objects. Some combinations are held out."""
    folder = tmp_path_factory.mktemp("captioned")
    merges = learn_merges(caption_corpus(pictures))
    save_tokenizer(folder / "tokenizer", merges)
    autoencoder = Autoencoder(autoencoder_config(TEXT_PRESETS["tiny"], 4 * SIDE)).eval().requires_grad_(False)
    stir(autoencoder)
    latents = torch.randn(pictures.combinations, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return CaptionedLatents(
        pictures=pictures,
        latents=latents.numpy().astype(np.float16),
        held_out=held_out_combinations(pictures, pairs=4),
        tokenizer=TextTokenizer.from_folder(folder / "tokenizer"),
        merges=merges,
        autoencoder=autoencoder,
        preview=[[0.5, 0.0, 0.0]] * 5,
    )
