"""The first stage, and the latents that come out of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.training.datasets.dataset import to_unit
from denoised.model.training.emoji.emoji_pictures import EmojiPictures
from denoised.model.training.emoji.held_out import held_out_combinations
from denoised.model.training.text_to_image.autoencoder_trainer import AutoencoderTrainer
from denoised.model.training.text_to_image.latents import (
    encode_combinations,
    fit_preview,
    load_latents,
    normalize_latents,
    save_latents,
)
from denoised.model.training.text_to_image.text_presets import TEXT_PRESETS, autoencoder_config
from denoised.model.training.text_to_image.text_training_config import AutoencoderTrainingConfig

CONFIG = AutoencoderTrainingConfig(
    preset="tiny", images=320, batch=8, warmup=2, precision="float32", learning_rate=3e-3
)


@pytest.fixture
def held_out(pictures: EmojiPictures) -> np.ndarray:
    return held_out_combinations(pictures, pairs=4)


def test_a_resumed_run_equals_an_uninterrupted_one(pictures: EmojiPictures, held_out: np.ndarray) -> None:
    whole = AutoencoderTrainer(CONFIG, pictures, held_out)
    losses = [whole.train_step()[0] for _ in range(4)]
    first = AutoencoderTrainer(CONFIG, pictures, held_out)
    for _ in range(2):
        first.train_step()
    state = {name: value.clone() for name, value in first.state().items()}
    second = AutoencoderTrainer(CONFIG, pictures, held_out)
    second.load_state(state)
    assert [second.train_step()[0] for _ in range(2)] == losses[2:]
    found = second.state()
    for name, value in whole.state().items():
        assert torch.equal(value, found[name]), name


def test_training_improves_held_out_pictures(pictures: EmojiPictures, held_out: np.ndarray) -> None:
    trainer = AutoencoderTrainer(CONFIG, pictures, held_out)
    before = trainer.measure()["held_out_psnr"]
    for _ in range(40):
        trainer.train_step()
    assert trainer.measure()["held_out_psnr"] > before + 0.5  # dB
    assert not held_out[trainer.trained].any()


def test_a_perfect_reconstruction_has_no_error(pictures: EmojiPictures, held_out: np.ndarray) -> None:
    """The loss of an exact output is the divergence alone, 0 for latents of unit noise."""
    trainer = AutoencoderTrainer(CONFIG, pictures, held_out)
    autoencoder = trainer.net.autoencoder
    with torch.no_grad():
        for weights in (autoencoder.quant_conv, autoencoder.decoder.conv_out):
            assert isinstance(weights, torch.nn.Conv2d)
            assert weights.bias is not None
            weights.weight.zero_()
            weights.bias.zero_()
        loss = trainer.loss(torch.zeros(1, 3, 64, 64), torch.zeros(1, 4, 16, 16))
        assert float(loss) == pytest.approx(0, abs=1e-7)
        white = trainer.loss(torch.ones(1, 3, 64, 64), torch.zeros(1, 4, 16, 16))
    assert float(white) == pytest.approx(1, abs=1e-6), "an even error has no edges"


def test_normalized_latents_decode_to_the_same_pictures(pictures: EmojiPictures, stir: Callable[..., None]) -> None:
    autoencoder = Autoencoder(autoencoder_config(TEXT_PRESETS["tiny"], 64)).eval().requires_grad_(False)
    stir(autoencoder)
    combinations = np.arange(pictures.combinations)
    pixels = to_unit(pictures.on_colors(combinations[:4]))
    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    before = autoencoder.decode(autoencoder.encode(pixels).sample(noise))
    normalize_latents(autoencoder, pictures, combinations)
    after = autoencoder.decode(autoencoder.config.unscale(autoencoder.encode(pixels).sample(noise)))
    assert torch.allclose(before, after, atol=1e-4)
    latents = encode_combinations(autoencoder, pictures, combinations).float()
    std, mean = torch.std_mean(latents, dim=(0, 2, 3))
    assert torch.allclose(mean, torch.zeros(4), atol=2e-3)  # of float16
    assert torch.allclose(std, torch.ones(4), atol=2e-3)
    assert autoencoder.config.scaling_factor == 1.0


def test_latents_are_stored_in_a_file_that_is_mapped(tmp_path: Path) -> None:
    latents = torch.randn(3, 4, 2, 2).half()
    save_latents(tmp_path / "latents.npy", latents)
    assert [path.name for path in tmp_path.iterdir()] == ["latents.npy"]
    read = load_latents(tmp_path / "latents.npy")
    assert isinstance(read, np.memmap)
    assert np.array_equal(read, latents.numpy())


def test_the_preview_finds_a_linear_map_exactly(pictures: EmojiPictures) -> None:
    """Latents made of the colors by a linear map: the fit inverts it."""
    pixels = to_unit(pictures.on_colors(np.arange(pictures.combinations)))
    small = torch.nn.functional.adaptive_avg_pool2d(pixels, (16, 16))  # (B, 3, 16, 16)
    latents = torch.cat([2 * small + 1, torch.randn(len(small), 1, 16, 16)], dim=1)
    rows = np.array(fit_preview(latents.numpy(), pictures, np.arange(pictures.combinations)))
    expected = np.concatenate([np.eye(3) / 2, np.zeros((1, 3)), np.full((1, 3), -0.5)])
    assert np.allclose(rows, expected, atol=1e-4)
