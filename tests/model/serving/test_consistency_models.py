"""A consistency model as it is loaded: what its card offers, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from denoised.model.errors import CheckpointError, PlanError
from denoised.model.evaluation.likelihood import bits_per_dimension
from denoised.model.serving.loading import load_model, load_text_model
from denoised.model.serving.sampling import sample
from tests.text_pipelines import save_pipeline

LEVELS = [40.0, 1.1]


def with_card(folder: Path, **card: Any) -> Path:
    own = json.loads((folder / "model_card.json").read_text()) if (folder / "model_card.json").exists() else {}
    (folder / "model_card.json").write_text(json.dumps({**own, **card}))
    return folder


@pytest.fixture
def tuned(folder: Callable[..., Path]) -> Path:
    return with_card(
        folder(labels=("a", "b", "c"), unconditional=False, prediction_type="v_prediction"), consistency_levels=LEVELS
    )


def test_its_card_offers_one_sampler_and_no_guidance(tuned: Path) -> None:
    card = load_model(tuned).card
    assert (card.samplers, list(card.sampler_descriptions)) == (["consistency"], ["consistency"])
    assert (card.default.sampler, card.default.steps, card.default.guidance_scale) == ("consistency", 2, 1.0)
    assert (card.spacing_samplers, card.eta_samplers, card.karras_samplers) == ([], [], [])
    assert (card.grid.consistency, card.distilled, card.unconditional) == (LEVELS, True, False)


def test_other_models_do_not_offer_it(folder: Callable[..., Path]) -> None:
    model = load_model(folder())
    assert "consistency" not in model.card.samplers
    assert (model.card.grid.consistency, model.card.distilled) == ([], False)
    with pytest.raises(PlanError, match=r"^sampler = 'consistency' is not for these weights \(offered: ddpm, "):
        model.plan("consistency", 2, 0.0)


def test_it_refuses_other_samplers_scores_and_likelihoods(tuned: Path) -> None:
    model = load_model(tuned)
    with pytest.raises(PlanError, match=r"^sampler = 'ddim' is not for these weights \(offered: consistency\)$"):
        sample(model, [0], sampler="ddim", steps=2)
    with pytest.raises(PlanError, match=r"^steps = 3 is outside 1 … 2, the noise levels that the model was tuned at$"):
        sample(model, [0], sampler="consistency", steps=3)
    message = "^boots is a consistency model, which has neither scores nor likelihoods$"
    with pytest.raises(PlanError, match=message):
        model.score(torch.zeros(1, 1, 8, 8), 10, 0)
    with pytest.raises(PlanError, match=message):
        bits_per_dimension(model, torch.zeros(1, 1, 8, 8, dtype=torch.uint8), [0])


def test_the_levels_belong_to_what_the_digest_names(tuned: Path) -> None:
    before = load_model(tuned).card.digest
    assert load_model(with_card(tuned, consistency_levels=[40.0, 1.2])).card.digest != before
    assert load_model(with_card(tuned, consistency_levels=LEVELS, description="other words")).card.digest == before


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"default": {"sampler": "ddim"}}, "default.sampler = 'ddim' does not go with consistency_levels"),
        (
            {"consistency_levels": [], "default": {"sampler": "consistency"}},
            "default.sampler = 'consistency' needs consistency_levels",
        ),
        ({"default": {"steps": 3}}, "consistency_levels: steps = 3 is outside 1 … 2, the noise levels that the model"),
        ({"consistency_levels": [1.0, 2.0]}, "consistency_levels: sigmas are not 2 falling values within "),
        ({"default": {"spacing": "karras"}}, "default.sampler = 'consistency' takes no noise levels"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(tuned: Path, card: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{tuned}/model_card.json: {message}')}"):
        load_model(with_card(tuned, **card))


def test_a_text_model_has_none(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    with pytest.raises(CheckpointError, match=r"model_card.json: consistency_levels are for models of pixels$"):
        load_text_model(with_card(tmp_path, consistency_levels=LEVELS))
