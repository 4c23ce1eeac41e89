"""Requests for a consistency model: what its card leaves to choose, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from denoised.app.admission.request_warnings import find_warnings
from denoised.app.admission.task_validation import cards_of_tasks, resolve_task
from denoised.app.admission.validation import choose_card, resolve_request
from denoised.app.http.errors import InvalidRequest
from denoised.model.checkpoints.card_file import Defaults
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.serving.card import ModelCard
from denoised.model.serving.card_facts import sampler_facts

DIGEST = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def card(card_of: Callable[..., ModelCard]) -> ModelCard:
    """A model of the levels 40 and 1.1."""
    facts = sampler_facts(NoiseSchedule.from_name("linear"), Grid("trailing", consistency_levels=(40.0, 1.1)))
    default = Defaults(sampler="consistency", steps=2)
    return card_of(name="jumps", unconditional=False, distilled=True, pictures="start", default=default, **facts)


@pytest.mark.parametrize("given", [{}, {"steps": 2}, {"steps": 1}, {"sampler": "consistency"}, {"guidance_scale": 1.0}])
def test_its_requests_take_one_evaluation_a_step(card: ModelCard, given: dict[str, Any]) -> None:
    request = resolve_request({"label": 0, "n": 3, **given}, card)  # type: ignore[typeddict-item]
    assert (request.sampler, request.guidance_scale) == ("consistency", 1.0)
    assert request.evaluations == 3 * given.get("steps", 2)
    assert list(find_warnings(request, card)) == []


@pytest.mark.parametrize(("strength", "evaluations"), [(1.0, 2), (0.5, 1), (0.0, 0)])
def test_a_run_from_a_picture_begins_at_its_levels(card: ModelCard, strength: float, evaluations: int) -> None:
    request = resolve_request({"label": 0, "image": DIGEST, "strength": strength}, card)
    assert request.evaluations == evaluations


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"steps": 3}, "steps", "3 is over 2, the noise levels that jumps was tuned at"),
        ({"sampler": "ddim"}, "sampler", "'ddim' is not offered (offered: consistency)"),
        ({"label": None}, "label", "jumps is conditional only, so it needs a label"),
        ({"guidance_scale": 2.0}, "guidance_scale", "2 needs a model that also samples without a label"),
        ({"guidance_interval": [0.2, 2]}, "guidance_interval", "[0.2, 2] needs a guidance_scale over 1"),
        ({"eta": 0.5}, "eta", "0.5 was given, but consistency takes no eta"),
        ({"spacing": "karras"}, "spacing", "'karras' was given, but consistency takes no spacing"),
        ({"karras": True}, "karras", "true was given, but consistency takes no karras"),
        ({"sigmas": [40, 1.1]}, "sigmas", "[40.0, 1.1] was given, but consistency takes no sigmas (taken by: none)"),
    ],
)
def test_other_requests_are_refused(card: ModelCard, given: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_request({"label": 0, **given}, card)  # type: ignore[typeddict-item]
    found = [each["message"] for each in caught.value.extra["errors"] if each["field"] == field]
    assert any(each.replace('"', "'").startswith(message) for each in found), found


def test_other_models_do_not_offer_its_sampler(card_of: Callable[..., ModelCard]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_request({"label": 0, "sampler": "consistency"}, card_of())
    (error,) = caught.value.extra["errors"]
    assert error["field"] == "sampler"
    assert error["message"].startswith('"consistency" is not offered (offered: ')


def test_it_adds_noise_to_pictures_but_has_no_scores_and_no_likelihoods(card: ModelCard) -> None:
    given = {"image": DIGEST, "label": 0, "seed": 1}
    assert resolve_task("noise", {**given, "t": 100.0}, card).task == "noise"
    for task, fields in (("score", {"t": 100.0}), ("likelihood", {})):
        with pytest.raises(InvalidRequest) as caught:
            resolve_task(task, {**given, **fields}, card)  # type: ignore[arg-type]
        (error,) = caught.value.extra["errors"]
        assert error["message"].startswith(f'"jumps" has no {task}: a consistency model predicts where a trajectory ')


def test_a_task_without_a_model_goes_to_another_one(card: ModelCard, card_of: Callable[..., ModelCard]) -> None:
    cards = [card, card_of(name="shoes", pictures="start")]
    assert choose_card(None, cards_of_tasks(cards, None), []).name == "shoes"
    assert [each.name for each in cards_of_tasks(cards, "jumps")] == ["jumps", "shoes"]
