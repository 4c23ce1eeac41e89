"""Drawings and a trained judge, small enough for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from denoised.model.__main__ import app
from denoised.model.evaluation.text_to_image.judge import Judge, build_judge
from denoised.model.evaluation.text_to_image.judge_trainer import JudgeTrainer, JudgeTrainingConfig
from denoised.model.training.emoji.emoji_pictures import EmojiPictures
from tests.model.training.conftest import packages
from tests.model.training.conftest import pictures as rendered

__all__ = ["packages", "rendered"]

OBJECT_TINTS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255))
STYLE_TINTS = ((255, 0, 255), (100, 0, 0), (0, 100, 0), (0, 0, 100), (200, 200, 255))

CONFIG = JudgeTrainingConfig(
    images=6_000,
    batch=24,
    warmup=10,
    precision="float32",
    learning_rate=5e-3,
    ema_decay=0.9,
    widths=(16, 32, 64),
)


@pytest.fixture(scope="session")
def pictures(rendered: EmojiPictures) -> EmojiPictures:
    """The objects and styles of the small packages, in drawings that are easy to tell: two tints."""
    rgba = np.zeros((len(rendered), 64, 64, 4), dtype=np.uint8)
    rgba[:, 12:52, 12:52, 3] = 255
    for row, (index, style) in enumerate(zip(rendered.object_of, rendered.style_of, strict=True)):
        rgba[row, 12:52, 12:32, :3] = OBJECT_TINTS[index]
        rgba[row, 12:52, 32:52, :3] = STYLE_TINTS[style]
    return replace(rendered, rgba=rgba)


@pytest.fixture(scope="session")
def trained(pictures: EmojiPictures) -> JudgeTrainer:
    """A judge of five objects after 250 steps."""
    trainer = JudgeTrainer(CONFIG, pictures)
    while trainer.step < trainer.steps:
        trainer.train_step()
    return trainer


@pytest.fixture(scope="session")
def judge(trained: JudgeTrainer) -> Judge:
    network = build_judge(trained.card)
    network.load_state_dict(trained.ema)
    return Judge(network, trained.card)


@pytest.fixture(scope="session")
def run(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `train-text` that learned nothing."""
    folder = tmp_path_factory.mktemp("text")
    options = ("--preset", "tiny", "--batch", "8", "--autoencoder-batch", "8", "--images", "8", "--threads", "1")
    more = ("--autoencoder-images", "8", "--precision", "float32", "--warmup", "1")
    result = CliRunner().invoke(app, ["train-text", "--data", str(packages), "--out", str(folder), *options, *more])
    assert result.exit_code == 0, result.output
    return folder
