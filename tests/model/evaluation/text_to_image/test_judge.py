"""The judge: it learns the drawings, its run can be resumed, and its pictures are changed as the settings say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from denoised.model.errors import CheckpointError
from denoised.model.evaluation.text_to_image.judge import Judge, load_judge, save_judge
from denoised.model.evaluation.text_to_image.judge_trainer import (
    JudgeTrainer,
    JudgeTrainingConfig,
    correct_answers,
    disturb,
    gaussian_blur,
)
from denoised.model.training.datasets.dataset import to_unit
from denoised.model.training.emoji.captions import full_caption, write_caption
from denoised.model.training.emoji.emoji_pictures import COLOR_NAMES, EmojiPictures
from denoised.model.training.emoji.styles import STYLE_NAMES
from tests.model.evaluation.text_to_image.conftest import CONFIG

STILL = JudgeTrainingConfig(shift=0.0, scale=0.0, blur=0.0, noise=0.0)


def test_the_answers_of_a_combination_are_those_of_its_caption(pictures: EmojiPictures) -> None:
    combinations = np.arange(0, pictures.combinations, 7)
    for combination, (named, style, color) in zip(
        combinations, correct_answers(pictures, combinations).T.tolist(), strict=True
    ):
        caption = write_caption(pictures.objects[named].label, STYLE_NAMES[style], COLOR_NAMES[color])
        assert caption == full_caption(pictures, int(combination))


def test_it_learns_what_it_is_shown(trained: JudgeTrainer, judge: Judge, pictures: EmojiPictures) -> None:
    measured = trained.measure()
    assert measured.keys() == {"object_accuracy", "style_accuracy", "background_accuracy"}
    assert min(measured.values()) > 0.8
    combinations = np.arange(pictures.combinations)
    judgment = judge.judge(pictures.on_colors(combinations))
    for logits, answer in zip(judgment.logits, correct_answers(pictures, combinations), strict=True):
        assert (logits.argmax(dim=1) == answer).double().mean() > 0.9


def test_a_resumed_run_equals_an_uninterrupted_one(pictures: EmojiPictures) -> None:
    whole = JudgeTrainer(CONFIG, pictures)
    losses = [whole.train_step()[0] for _ in range(4)]
    first = JudgeTrainer(CONFIG, pictures)
    resumed_losses = [first.train_step()[0] for _ in range(2)]
    second = JudgeTrainer(CONFIG, pictures)
    second.load_state(first.state())
    resumed_losses += [second.train_step()[0] for _ in range(2)]
    assert resumed_losses == losses
    assert all(torch.equal(whole.ema[name], value) for name, value in second.ema.items())


def test_measuring_changes_nothing(pictures: EmojiPictures) -> None:
    trainer = JudgeTrainer(CONFIG, pictures)
    before = trainer.state()
    first = trainer.measure()
    assert trainer.measure() == first
    assert all(torch.equal(before[name], value) for name, value in trainer.state().items())


def test_a_judge_survives_its_folder(judge: Judge, pictures: EmojiPictures, tmp_path: Path) -> None:
    save_judge(tmp_path, judge.network.state_dict(), judge.card)
    loaded = load_judge(tmp_path)
    assert loaded.card == judge.card
    assert loaded.digest == judge.digest
    shown = pictures.on_colors(np.arange(8))
    assert torch.equal(loaded.judge(shown).features, judge.judge(shown).features)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"objects": ["a"]}, "objects: "), ({"widths": []}, "widths: "), ({"extra": 1}, "extra: ")],
)
def test_a_card_that_is_wrong_is_refused(judge: Judge, tmp_path: Path, change: dict[str, object], message: str) -> None:
    save_judge(tmp_path, judge.network.state_dict(), judge.card)
    card = json.loads((tmp_path / "judge.json").read_text())
    (tmp_path / "judge.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(CheckpointError, match=f"judge.json: {message}"):
        load_judge(tmp_path)


def test_a_folder_without_a_judge(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"judge\.json: missing"):
        load_judge(tmp_path)


def test_without_any_change_a_picture_stays_as_it_is(pictures: EmojiPictures) -> None:
    pixels = to_unit(pictures.on_colors(np.arange(12)))
    assert (disturb(pixels, STILL, torch.Generator().manual_seed(0)) - pixels).abs().max() < 1e-4


def test_a_background_goes_on_beyond_the_border() -> None:
    plain = torch.full((4, 3, 64, 64), 0.25)
    config = JudgeTrainingConfig(shift=8.0, scale=0.3, blur=2.0, noise=0.0)
    assert (disturb(plain, config, torch.Generator().manual_seed(0)) - 0.25).abs().max() < 1e-5


def test_pictures_are_changed_by_amounts_of_their_own(pictures: EmojiPictures) -> None:
    pixels = to_unit(pictures.on_colors(np.zeros(4, dtype=np.int64)))
    changed = disturb(pixels, JudgeTrainingConfig(), torch.Generator().manual_seed(0))
    assert len({tuple(each.flatten().tolist()) for each in changed}) == 4
    assert changed.abs().max() <= 1


def test_blur_is_a_gaussian_of_each_pictures_width() -> None:
    point = torch.zeros(2, 1, 9, 9)
    point[:, :, 4, 4] = 1.0
    sigma = torch.tensor([0.5, 1.0])
    blurred = gaussian_blur(point, sigma)
    for k, width in enumerate(sigma.tolist()):
        position = torch.arange(-2, 3)
        weights = torch.exp(-(position**2) / (2 * width**2))
        weights /= weights.sum()
        assert torch.allclose(blurred[k, 0, 2:7, 2:7], weights[:, None] * weights, atol=1e-6)
    assert torch.allclose(blurred.sum(dim=(1, 2, 3)), torch.ones(2), atol=1e-5)
