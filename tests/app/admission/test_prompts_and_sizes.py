"""Prompts and sizes: what a text model takes, and how a request for one is resolved."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from denoised.app.admission.catalog import offered_by_both
from denoised.app.admission.request_warnings import find_warnings
from denoised.app.admission.reservation import job_bytes
from denoised.app.admission.validation import resolve_request
from denoised.app.compat.openai.openai_schemas import ImagesRequest
from denoised.app.compat.openai.translation import translate
from denoised.app.http.errors import InvalidRequest
from denoised.app.http.requests.request_body import GenerateRequest
from denoised.jobs.errors import RecordError
from denoised.jobs.lora import Lora
from denoised.jobs.record import JobRecord
from denoised.jobs.request import MAX_PROMPT
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.serving.card import CardLora, ModelCard
from denoised.worker.delivery.request_check import check_request


@pytest.fixture
def card(painter_of: Callable[..., ModelCard]) -> ModelCard:
    return painter_of(latent={"channels": 4, "downscale": 8})


def parsed(card: ModelCard, **body: Any) -> SamplingRequest:
    return resolve_request(GenerateRequest.model_validate({"seed": 5, **body}).fields(), card)


def refused(card: ModelCard, **body: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as refusal:
        parsed(card, **body)
    return {error["field"]: error["message"] for error in refusal.value.extra["errors"]}


def test_a_prompt_is_guided_as_the_card_says(card: ModelCard) -> None:
    request = parsed(card, prompt="a goat", negative_prompt="a sheep")
    assert (request.prompt, request.negative_prompt) == ("a goat", "a sheep")
    assert (request.label, request.guidance_scale, request.rows_per_evaluation) == (None, 7.5, 2)


def test_without_any_text_there_is_nothing_to_guide_toward(card: ModelCard) -> None:
    assert parsed(card).guidance_scale == 1.0
    assert parsed(card, negative_prompt="a sheep").guidance_scale == 7.5
    assert refused(card, guidance_scale=3) == {"guidance_scale": "3 needs a prompt (allowed without one: 1)"}


def test_an_empty_text_and_the_models_own_size_are_as_if_left_out(card: ModelCard) -> None:
    assert parsed(card, prompt="", negative_prompt="", width=64, height=32) == parsed(card)


def test_a_picture_carries_prompt_and_size_only_if_they_were_given(card: ModelCard) -> None:
    plain = parsed(card).parameters(0, "fake")
    assert {"prompt", "negative_prompt", "width", "height"}.isdisjoint(plain)
    full = parsed(card, prompt="a goat", negative_prompt="a sheep", width=32, height=48).parameters(0, "fake")
    assert [full[name] for name in ("prompt", "negative_prompt", "width", "height")] == ["a goat", "a sheep", 32, 48]
    again = resolve_request(
        GenerateRequest.model_validate({k: v for k, v in full.items() if k != "numerics"}).fields(), card
    )
    assert again.parameters(0, "fake") == full


def test_a_stored_request_keeps_prompt_and_size(card: ModelCard) -> None:
    request = parsed(card, prompt="ein Hund 🐕 \x00", width=32)
    assert JobRecord.from_fields(JobRecord("a", "", request, 0.0).to_fields()).request == request


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (
            {"label": "goat"},
            "label",
            "takes no label (its inputs: prompt, negative_prompt, width, height, clip_skip, emphasis)",
        ),
        ({"label": 0}, "label", "takes no label"),
        ({"width": 40}, "width", "40 is not a size of painter (allowed: multiples of 16)"),
        ({"height": 8}, "height", "8 is not a size of painter (allowed: multiples of 16)"),
        ({"width": 80, "height": 64}, "width", "80×64 has 5120 pixels, too many for painter"),
        ({"clip_skip": 3}, "clip_skip", "3 is over 2, the most layers that can be skipped in painter"),
        ({"height": 80}, "height", "64×80 has 5120 pixels, too many for painter (allowed: width·height up to 4096)"),
    ],
)
def test_what_a_text_model_does_not_take_is_refused(
    body: dict[str, Any], field: str, message: str, card: ModelCard
) -> None:
    errors = refused(card, **body)
    assert list(errors) == [field]
    assert message in errors[field]


def test_what_a_job_object_says_can_be_posted_again(card: ModelCard, card_of: Callable[..., ModelCard]) -> None:
    """It carries every field, also the defaults of those that a model does not take."""
    for model, body in ((card, {"prompt": "a goat"}), (card_of(), {"label": 1})):
        request = parsed(model, **body)
        shown = {**request.members(), "label": request.label_name}
        assert shown["emphasis"] is False
        assert parsed(model, **shown) == request


@pytest.mark.parametrize("size", [(64, 64), (16, 256), (128, 32)])
def test_sizes_up_to_the_largest_number_of_pixels_are_taken(size: tuple[int, int], card: ModelCard) -> None:
    request = parsed(card, width=size[0], height=size[1])
    assert (request.width or card.width, request.height or card.height) == size


def test_a_negative_prompt_without_guidance_is_warned_of(card: ModelCard) -> None:
    request = parsed(card, prompt="a goat", negative_prompt="a sheep", guidance_scale=1, spacing="trailing")
    assert [warning.field for warning in find_warnings(request, card)] == ["negative_prompt"]
    guided = parsed(card, prompt="a goat", negative_prompt="a sheep", spacing="trailing")
    assert list(find_warnings(guided, card)) == []


def test_clip_skip_and_emphasis_are_carried_by_the_picture_if_they_were_given(card: ModelCard) -> None:
    assert {"clip_skip", "emphasis"}.isdisjoint(parsed(card, clip_skip=0, emphasis=False).parameters(0, "fake"))
    full = parsed(card, prompt="a (goat)", clip_skip=2, emphasis=True).parameters(0, "fake")
    assert (full["clip_skip"], full["emphasis"]) == (2, True)
    again = resolve_request(
        GenerateRequest.model_validate({k: v for k, v in full.items() if k != "numerics"}).fields(), card
    )
    assert again.parameters(0, "fake") == full


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "clip_skip", "emphasis"])
def test_a_model_of_labels_takes_no_text_options(field: str, card_of: Callable[..., ModelCard]) -> None:
    value: Any = {"clip_skip": 1, "emphasis": True}.get(field, "a goat")
    errors = refused(card_of(), **{field: value})
    assert errors.keys() == {field}
    assert f"takes no {field} (its inputs: label)" in errors[field]


def test_a_model_with_guidance_as_an_input_takes_one_row_a_step(card: ModelCard) -> None:
    embedded = card.model_copy(update={"guidance_embedded": True})
    request = parsed(embedded, prompt="a goat")
    assert (request.guidance_scale, request.guided, request.rows_per_evaluation, request.evaluations) == (
        7.5,
        False,
        1,
        20,
    )
    assert parsed(embedded).guidance_scale == 7.5  # also without a prompt
    assert parsed(embedded, guidance_scale=1).guidance_scale == 1.0
    assert JobRecord.from_fields(JobRecord("a", "", request, 0.0).to_fields()).request == request
    assert refused(embedded, negative_prompt="a sheep").keys() == {"negative_prompt"}
    assert refused(embedded, guidance_rescale=0.5).keys() == {"guidance_rescale"}


def test_a_larger_picture_reserves_more_memory(card: ModelCard) -> None:
    assert job_bytes(parsed(card, width=128), card) > job_bytes(parsed(card), card)


def test_the_card_lists_its_inputs_in_json(card: ModelCard, card_of: Callable[..., ModelCard]) -> None:
    assert card.model_dump()["inputs"] == ["prompt", "negative_prompt", "width", "height", "clip_skip", "emphasis"]
    assert card_of().model_dump()["inputs"] == ["label"]
    assert ModelCard(**card.model_dump()) == card


def openai(card: ModelCard, **body: Any) -> dict[str, Any]:
    return {**translate(ImagesRequest.model_validate({"prompt": "a goat", **body}), card)}


def test_the_openai_route_passes_prompt_and_size_on(card: ModelCard) -> None:
    fields = openai(card, size="32x48")
    assert (fields["prompt"], fields.get("label"), fields["width"], fields["height"]) == ("a goat", None, 32, 48)
    assert openai(card, size="auto")["width"] is None
    assert parsed(card, **{name: value for name, value in fields.items() if name != "seed"}).prompt == "a goat"


def test_the_openai_route_refuses_other_sizes_and_too_long_prompts(card: ModelCard) -> None:
    with pytest.raises(InvalidRequest, match=re.escape("allowed: auto, 64x32, or other multiples of 16")):
        openai(card, size="large")
    with pytest.raises(InvalidRequest, match=f"allowed: {MAX_PROMPT}"):
        openai(card, prompt="x" * (MAX_PROMPT + 1))


def test_adapters_are_resolved_in_order_of_name_with_the_digests_of_the_card(card: ModelCard) -> None:
    card = card.model_copy(update={"loras": [CardLora(name="ink", digest="1a"), CardLora(name="clay", digest="2b")]})
    request = parsed(card, prompt="a goat", loras=[{"name": "ink", "weight": 2}, {"name": "clay", "digest": "2b"}])
    assert request.loras == (Lora("clay", 1.0, "2b"), Lora("ink", 2.0, "1a"))
    assert parsed(card, loras=[]).loras == parsed(card).loras == ()
    assert refused(card, loras=[{"name": "ink", "digest": "2b"}]) == {
        "loras.0.digest": '"2b": another file is served under the name "ink" (served: 1a)'
    }


def test_any_worker_of_a_model_has_the_adapters_of_its_card(card: ModelCard) -> None:
    ink, clay, other = (
        CardLora(name="ink", digest="1"),
        CardLora(name="clay", digest="2"),
        CardLora(name="ink", digest="3"),
    )
    cards = [card.model_copy(update={"loras": loras}) for loras in ([ink, clay], [clay, other])]
    assert offered_by_both(*cards).loras == [clay]
    assert offered_by_both(cards[0], cards[0]) is cards[0]


def test_a_stored_request_with_adapters_is_checked(card: ModelCard) -> None:
    card = card.model_copy(update={"loras": [CardLora(name="ink", digest="1a")]})
    request = parsed(card, loras=[{"name": "ink", "weight": 2}])
    record = JobRecord("a", "", request, 0.0)
    assert JobRecord.from_fields(record.to_fields()).request == request
    check_request(request, card)
    for lora, message in (
        (Lora("ink", 2.0, "2b"), "has changed since the job was accepted"),
        (Lora("clay", 2.0, "1a"), "does not offer here"),
    ):
        with pytest.raises(RecordError, match=message):
            check_request(replace(request, loras=(lora,)), card)
    for loras, message in (
        ((Lora("ink", 5.0),), "loras.weight of the request is 5"),
        ((Lora("ink"), Lora("ink")), "names an adapter twice"),
        (tuple(Lora(str(k)) for k in range(5)), "loras of the request has 5 items"),
        ((Lora("x" * 1001),), "loras.name of the request has 1001 characters"),
    ):
        with pytest.raises(RecordError, match=message):
            JobRecord.from_fields(replace(record, request=replace(request, loras=loras)).to_fields())
