"""The spacing `learned`: the levels that a model's card has for a sampler and a number of steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.errors import PlanError
from denoised.model.serving.loading import load_model, load_text_model
from denoised.model.serving.sampling import sample
from tests.text_pipelines import save_pipeline

LEVELS = [1.1, 0.4, 0.05]
LEARNED = {"learned_levels": [{"sampler": "unipc_3", "sigmas": LEVELS}, {"sampler": "euler", "sigmas": [1.0]}]}


def with_levels(folder: Path) -> Path:
    (folder / "model_card.json").write_text(json.dumps(LEARNED))
    return folder


def test_pictures_are_those_of_the_levels(folder: Callable[..., Path]) -> None:
    model = load_model(with_levels(folder()))
    learned = sample(model, [0], sampler="unipc_3", steps=3, levels=LevelChoice("learned"))
    assert torch.equal(
        learned, sample(model, [0], sampler="unipc_3", steps=3, levels=LevelChoice(sigmas=tuple(LEVELS)))
    )
    assert not torch.equal(learned, sample(model, [0], sampler="unipc_3", steps=3))


def test_a_run_from_a_picture_begins_in_the_middle_of_them(folder: Callable[..., Path]) -> None:
    model = load_model(with_levels(folder()))
    plan = model.plan("unipc_3", 3, 0.0, LevelChoice("learned", skipped_steps=1))
    assert [plan.ratio(row) for row in range(plan.evaluations)] == pytest.approx(LEVELS[1:])


def test_the_card_offers_them_and_says_what_they_are_for(folder: Callable[..., Path]) -> None:
    card = load_model(with_levels(folder())).card
    assert card.spacings[-1] == "learned"
    assert card.learned_sigmas("unipc_3", 3) == LEVELS
    assert card.learned_sigmas("unipc_3", 4) is None
    assert card.learned_sigmas("ddim", 3) is None
    assert "learned" not in load_model(folder()).card.spacings


@pytest.mark.parametrize(("sampler", "steps"), [("unipc_3", 4), ("ddim", 3)])
def test_other_requests_are_refused(sampler: str, steps: int, folder: Callable[..., Path]) -> None:
    model = load_model(with_levels(folder()))
    message = rf"no levels for {sampler} in {steps} steps \(levels for: unipc_3 in 3 steps, euler in 1 steps\)"
    with pytest.raises(PlanError, match=message):
        model.plan(sampler, steps, 0.0, LevelChoice("learned"))
    with pytest.raises(PlanError, match=r"\(levels for: none\)"):
        load_model(folder()).plan(sampler, steps, 0.0, LevelChoice("learned"))


def test_text_models_have_them_too(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    before = load_text_model(tmp_path).card.digest
    model = load_text_model(with_levels(tmp_path))
    plan = model.plan("unipc_3", 3, 0.0, LevelChoice("learned"))
    assert [plan.ratio(row) for row in range(plan.evaluations)] == pytest.approx(LEVELS)
    assert model.card.spacings[-1] == "learned"
    assert model.card.digest != before
