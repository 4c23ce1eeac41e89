"""Requests in records are checked against the model before anything is allocated for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from denoised.jobs.errors import RecordError
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.worker.delivery.request_check import check_request
from tests.harness import request


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_stages_of_every_sampler_are_allowed_and_no_more(sampler: str, fake_model: Callable[..., Any]) -> None:
    stages = {name: each.stages for name, each in SAMPLERS.items() if each.stages > 1}
    card = fake_model().card.model_copy(update={"stages": stages})
    check_request(request(sampler=sampler, stages=SAMPLERS[sampler].stages), card)
    with pytest.raises(RecordError, match="stages of the request is"):
        check_request(request(sampler=sampler, stages=SAMPLERS[sampler].stages + 1), card)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_skip": 1}, "clip_skip of the request is 1"),
        ({"emphasis": True}, "emphasis of the request was given"),
        ({"prompt": "a goat"}, "prompt of the request was given"),
        ({"guidance_embedded": True}, "guidance_embedded of the request is True"),
    ],
)
def test_text_options_are_for_text_models(fields: dict[str, Any], message: str, fake_model: Callable[..., Any]) -> None:
    with pytest.raises(RecordError, match=message):
        check_request(request(**fields), fake_model().card)
