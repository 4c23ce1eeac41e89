"""Validation of a request against its model's card: both sides of every limit, and messages with value and limit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from denoised.app.admission.validation import choose_card, resolve_request
from denoised.app.http.errors import InvalidRequest, Unavailable
from denoised.app.http.requests.request_body import GenerateRequest
from denoised.app.http.validation_errors import describe_validation_errors
from denoised.jobs.request import RequestFields
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.serving.card import ModelCard

Card = Callable[..., ModelCard]


def parsed(body: dict[str, Any], card: ModelCard) -> SamplingRequest:
    return resolve_request(GenerateRequest.model_validate(body).fields(), card)


def refused(body: dict[str, Any], card: ModelCard) -> dict[str, str]:
    """The refused fields with their messages, from whichever of the two checks refused them."""
    try:
        request = GenerateRequest.model_validate(body)
    except ValidationError as error:
        return dict(describe_validation_errors(error.errors(), GenerateRequest.model_fields))
    with pytest.raises(InvalidRequest) as refusal:
        resolve_request(request.fields(), card)
    return {error["field"]: error["message"] for error in refusal.value.extra["errors"]}


def test_a_field_that_is_left_out_takes_its_default(card_of: Card) -> None:
    request = parsed({"label": "sneaker", "seed": 5}, card_of())
    assert request == SamplingRequest(
        model="shoes",
        label=0,
        label_name="sneaker",
        n=1,
        seed=5,
        sampler="ddim",
        steps=20,
        eta=0.0,
        guidance_scale=2.5,
        format="png",
        preview_every=0,
        preview="x0",
    )


def test_null_means_the_default(card_of: Card) -> None:
    request = parsed({**dict.fromkeys(GenerateRequest.model_fields), "seed": 5}, card_of())
    assert request == parsed({"seed": 5}, card_of())


def test_a_conditional_model_requires_a_label(card_of: Card) -> None:
    card = card_of(unconditional=False)
    assert parsed({"label": 0}, card).guidance_scale == 1.0
    for body, field in (({}, "label"), ({"label": 0, "guidance_scale": 2}, "guidance_scale")):
        with pytest.raises(InvalidRequest) as caught:
            parsed(body, card)
        assert [error["field"] for error in caught.value.extra["errors"]] == [field]


def test_frames_of_noise_need_workers_that_know_them(card_of: Card) -> None:
    assert parsed({"preview": "all"}, card_of(previews=["x0", "xt", "both", "all"])).preview == "all"
    message = refused({"preview": "all"}, card_of())["preview"]  # a card that says nothing: workers of before
    assert message == '"all" is not known to the workers of shoes (allowed: x0, xt, both)'


def test_a_request_counts_its_evaluations(card_of: Card) -> None:
    """Two stages a step but for the last, guidance twice, every image."""
    assert parsed({"steps": 10, "n": 3}, card_of()).evaluations == 30
    assert parsed({"sampler": "heun", "steps": 10, "label": 0, "n": 2}, card_of()).evaluations == 2 * 19 * 2
    assert parsed({"sampler": "heun", "steps": 1}, card_of()).evaluations == 1


def test_a_seed_is_drawn_if_none_is_given(card_of: Card) -> None:
    seeds = {parsed({}, card_of()).seed for _ in range(20)}
    assert len(seeds) > 1
    assert all(0 <= seed <= 2**53 - 1 for seed in seeds)


ALLOWED: list[dict[str, Any]] = [
    {"n": 1},
    {"n": 16},
    {"seed": 0},
    {"seed": 2**53 - 1},
    {"seed": 2**53 - 16, "n": 16},
    {"steps": 1},
    {"steps": 1000},
    {"steps": 1000, "preview_every": 1000},
    {"preview_every": 0},
    {"sampler": "ddim", "eta": 1},
    {"sampler": "ddim", "eta": 0.5},
    {"sampler": "ddpm", "eta": 0},
    {"label": "sneaker", "guidance_scale": 1},
    {"label": "sneaker", "guidance_scale": 20.0},
    {"guidance_scale": 1},
    {"label": 0, "guidance_scale": 2, "guidance_rescale": 1},
    {"label": 0, "guidance_rescale": 0.7},
    {"guidance_rescale": 0},
    *({"spacing": spacing} for spacing in ("leading", "trailing", "linspace")),
    *({"spacing": spacing} for spacing in ("karras", "beta", "sgm_uniform")),
    {"sampler": "heun", "spacing": "karras", "karras": True},
    {"spacing": "beta", "karras": False, "sigma_min": 0.02, "sigma_max": 80},
    {"sampler": "heun", "karras": True, "sigma_max": 80},
    {"sigmas": [157.4, 3, 0.01]},
    {"sigmas": [1.5]},
    {"label": 0, "guidance_interval": [0.2, 2.0]},
    {"label": 0, "guidance_scale": 3, "guidance_interval": [0.0, 0.5]},
    {"sampler": "heun", "karras": True},
    {"sampler": "ddim", "karras": False},
    {"label": 0},
    {"label": 2},
    {"label": " ankle BOOT "},
    {"label": "БОТИНОК"},
    *({"format": format} for format in ("png", "webp", "jpeg")),
    *({"preview": preview} for preview in ("x0", "xt", "both")),
]


@pytest.mark.parametrize("body", ALLOWED, ids=str)
def test_the_last_value_within_each_limit_is_accepted(body: dict[str, Any], card_of: Card) -> None:
    request = parsed(body, card_of())
    for field, value in body.items():
        if field != "label":
            assert getattr(request, field) == value


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("n", {"n": 0}, "1"),
    ("n", {"n": 17}, "16"),
    ("n", {"n": 2**63}, "16"),
    ("n", {"n": 1.0}, "integer"),
    ("n", {"n": "1"}, "integer"),
    ("n", {"n": True}, "integer"),
    ("seed", {"seed": -1}, "0"),
    ("seed", {"seed": 2**53}, f"(allowed: {2**53 - 1} or less)"),
    ("seed", {"seed": 2**53 - 15, "n": 16}, str(2**53 - 16)),
    ("seed", {"seed": 10**400}, "(allowed: 9007199254740991 or less)"),
    ("seed", {"seed": "7"}, "integer"),
    ("seed", {"seed": 7.5}, "integer"),
    ("steps", {"steps": 0}, "1"),
    ("steps", {"steps": -8}, "1"),
    ("steps", {"steps": 1001}, "1000"),
    ("steps", {"steps": 2**31}, "1000"),
    ("steps", {"steps": True}, "integer"),
    ("eta", {"eta": -0.001}, "0"),
    ("eta", {"eta": 1.001}, "1"),
    ("eta", {"eta": "0.5"}, "number"),
    ("eta", {"eta": True}, "number"),
    ("eta", {"eta": float("nan")}, "finite"),
    ("eta", {"eta": float("inf")}, "finite"),
    ("eta", {"sampler": "ddpm", "eta": 0.1}, "ddim"),
    ("guidance_scale", {"label": 0, "guidance_scale": 0.999}, "1"),
    ("guidance_scale", {"label": 0, "guidance_scale": 20.001}, "20"),
    ("guidance_scale", {"label": 0, "guidance_scale": float("nan")}, "finite"),
    ("guidance_scale", {"label": 0, "guidance_scale": "3"}, "number"),
    ("guidance_scale", {"guidance_scale": 3}, "label"),
    ("guidance_rescale", {"label": 0, "guidance_rescale": 1.1}, "1"),
    ("guidance_rescale", {"label": 0, "guidance_rescale": True}, "number"),
    ("guidance_rescale", {"guidance_rescale": 0.5}, "guidance_scale over 1"),
    ("guidance_rescale", {"label": 0, "guidance_scale": 1, "guidance_rescale": 0.5}, "guidance_scale over 1"),
    ("guidance_interval", {"guidance_interval": [0.2, 2]}, "needs a guidance_scale over 1"),
    ("spacing", {"spacing": "random"}, "(allowed: leading, trailing, linspace, sgm_uniform"),
    ("spacing", {"spacing": "edm"}, "not offered by shoes (offered: leading, trailing, linspace, karras, beta"),
    ("karras", {"sampler": "heun", "spacing": "beta", "karras": True}, 'contradicts spacing = "beta"'),
    ("karras", {"spacing": "karras", "karras": False}, 'contradicts spacing = "karras" (allowed: leading'),
    ("sigma_min", {"sigma_min": 0.1}, "0.1 needs a spacing with bounds (one of: karras, beta)"),
    ("sigma_max", {"spacing": "sgm_uniform", "sigma_max": 10}, "10 needs a spacing with bounds"),
    ("spacing", {"spacing": "ays_sd"}, '"ays_sd" is not offered by'),
    ("sigma_max", {"spacing": "beta", "sigma_max": 200}, "200 is outside the model's noise levels"),
    ("sigma_min", {"spacing": "beta", "sigma_min": 5, "sigma_max": 2}, "5 is not below sigma_max = 2"),
    ("sigma_min", {"spacing": "beta", "sigma_min": 1.999, "sigma_max": 2}, "1.999 is not below sigma_max = 2 by a"),
    ("sigma_max", {"spacing": "beta", "sigma_max": 0.01000001}, "0.01000001 is not above 0.01 by a factor of 1.01"),
    ("sigma_min", {"spacing": "beta", "sigma_min": -1}, "0"),
    ("sigma_min", {"spacing": "beta", "sigma_min": "1"}, "number"),
    ("spacing", {"sigmas": [2, 1], "spacing": "trailing"}, "was given with sigmas"),
    ("karras", {"sigmas": [2, 1], "sampler": "heun", "karras": True}, "was given with sigmas"),
    ("steps", {"sigmas": [2, 1], "steps": 3}, "3 is not the number of sigmas (allowed: 2"),
    ("karras", {"karras": 1}, "true or false"),
    ("karras", {"sampler": "ddim", "karras": True}, "heun"),
    ("label", {"label": "sandal"}, "sneaker, Ankle Boot, ботинок"),
    ("label", {"label": ""}, "sneaker"),
    ("label", {"label": 3}, "0 … 2"),
    ("label", {"label": -1}, "0 … 2"),
    ("label", {"label": 1.0}, "class index"),
    ("label", {"label": False}, "class index"),
    ("label", {"label": ["sneaker"]}, "class index"),
    ("label", {"label": "x" * 201}, "200"),
    ("sampler", {"sampler": "euler"}, "ddim, ddpm, heun"),
    ("sampler", {"sampler": ""}, "1"),
    ("format", {"format": "gif"}, "png, webp or jpeg"),
    ("preview_every", {"preview_every": -1}, "0"),
    ("preview_every", {"preview_every": 21}, "20"),
    ("preview_every", {"steps": 5, "preview_every": 6}, "5"),
    ("preview", {"preview": "x1"}, "x0, xt, both or all"),
    ("model", {"model": 7}, "string"),
    ("model", {"model": ""}, "1"),
    ("text", {"text": "a shoe"}, 'not a field of this request (given: "a shoe"; allowed: model, label, prompt, '),
    ("prompt", {"prompt": "a shoe"}, '"a shoe" was given, but shoes takes no prompt (its inputs: label)'),
    ("negative_prompt", {"negative_prompt": "a shoe"}, "shoes takes no negative_prompt"),
    ("prompt", {"prompt": "x" * 2001}, "2000"),
    ("width", {"width": 28}, "shoes takes no width"),
    ("height", {"height": 0}, "1"),
    ("Label", {"Label": "sneaker"}, "did you mean label?"),
    ("guidanceScale", {"guidanceScale": 3}, "did you mean guidance_scale?"),
    ("step", {"step": 20}, "did you mean steps?"),
]


@pytest.mark.parametrize(
    ("field", "body", "limit"), REFUSED, ids=[f"{field}-{k}" for k, (field, *_) in enumerate(REFUSED)]
)
def test_the_first_value_beyond_each_limit_is_refused_with_field_and_limit(
    field: str, body: dict[str, Any], limit: str, card_of: Card
) -> None:
    messages = refused(body, card_of())
    named = {name.partition(".")[0] for name in messages}
    assert named == {field}
    message = " ".join(messages.values())
    assert limit in message
    if field in body:
        assert json.dumps(body[field])[:20].strip('[]"') in message, "the value given is named"


def test_all_invalid_fields_are_named_at_once(card_of: Card) -> None:
    body = {"label": "sandal", "n": 17, "steps": 2000, "sampler": "euler", "seed": 2**53 - 1}
    assert set(refused(body, card_of())) == {"label", "n", "steps", "sampler", "seed"}


def test_a_model_without_labels_refuses_them(card_of: Card) -> None:
    """try-off-anyone#6: a label given to an unconditional model."""
    card = card_of(labels=[])
    assert set(refused({"label": 0}, card)) == {"label"}
    assert parsed({}, card).guidance_scale == 1.0


@pytest.mark.parametrize(
    ("labels", "label", "index"),
    [
        (["Dog", "dog"], "dog", 1),
        (["1", "10", "2"], "2", 2),
        (["1", "10", "2"], 1, 1),
        (["tea", "caf\u00e9"], "cafe\u0301", 1),
    ],
)
def test_an_exact_label_wins(labels: list[str], label: str | int, index: int, card_of: Card) -> None:
    request = parsed({"label": label}, card_of(labels=labels))
    assert (request.label, request.label_name) == (index, labels[index])


def test_an_ambiguous_label_and_an_index_in_quotes_are_refused(card_of: Card) -> None:
    message = '"DOG" is ambiguous (allowed: an exact name: Dog, dog)'
    assert refused({"label": "DOG"}, card_of(labels=["Dog", "dog"])) == {"label": message}
    assert "is not a class of shoes" in refused({"label": "0"}, card_of())["label"]


def test_null_is_offered_only_by_a_model_that_takes_it(card_of: Card) -> None:
    assert "null" in refused({"label": "boat"}, card_of())["label"]
    assert "null" not in refused({"label": "boat"}, card_of(unconditional=False))["label"]


def test_guidance_is_off_without_a_label(card_of: Card) -> None:
    assert parsed({"label": 1}, card_of()).guidance_scale == 2.5
    assert parsed({}, card_of()).guidance_scale == 1.0
    assert parsed({"label": None}, card_of()).guidance_scale == 1.0


def test_an_error_shortens_the_refused_value(card_of: Card) -> None:
    for label in ("y" * 199, "y" * 500, '"\n' * 90):
        (message,) = refused({"model": None, "label": label}, card_of()).values()
        assert len(message) < 400
        (quoted,) = re.findall(r'"(?:[^"\\]|\\.)*"', message)
        assert json.loads(quoted) == label[:77] + "…"


def test_a_name_selects_its_card_and_no_name_the_first_that_takes_the_request(card_of: Card) -> None:
    shoes, hats = card_of(), card_of(name="hats")
    painter = card_of(name="painter", labels=[], prompts=True, size_multiple=16, max_pixels=4096)
    assert choose_card(None, [shoes, hats], []) is shoes
    assert choose_card("hats", [shoes, hats], []) is hats
    cards = [painter, shoes, hats]
    assert choose_card(None, cards, [], {"seed": 7, "n": 2}) is painter
    assert choose_card(None, cards, [], {"prompt": "a goat", "width": 32}) is painter
    assert choose_card(None, cards, [], {"label": "sneaker"}) is shoes
    assert choose_card(None, [shoes, hats, painter], [], {"prompt": "a goat"}) is painter
    assert choose_card("hats", cards, [], {"prompt": "a goat"}) is hats


def test_a_default_value_and_null_choose_no_model(card_of: Card) -> None:
    cards = [card_of(name="painter", labels=[], prompts=True, size_multiple=16, max_pixels=4096), card_of()]
    fields: RequestFields = {"label": None, "prompt": None, "loras": [], "clip_skip": 0, "emphasis": False}
    assert choose_card(None, cards, [], fields) is cards[0]
    assert choose_card(None, cards[::-1], [], fields) is cards[1]


def test_a_request_that_no_model_takes_is_refused_by_the_first(card_of: Card) -> None:
    painter = card_of(name="painter", labels=[], prompts=True)
    fields: RequestFields = {"label": 0, "prompt": "a goat"}
    assert choose_card(None, [painter, card_of()], [], fields) is painter
    assert set(refused({**fields}, painter)) == {"label"}


def test_a_model_without_a_worker_is_unavailable_and_named(card_of: Card) -> None:
    for cards in ([], [card_of()]):
        with pytest.raises(Unavailable, match="hats"):
            choose_card("hats", cards, ["hats"])
    with pytest.raises(Unavailable):
        choose_card(None, [], ["hats"])


def test_a_model_that_was_never_served_is_an_invalid_name(card_of: Card) -> None:
    with pytest.raises(InvalidRequest, match="served: shoes"):
        choose_card("hats", [card_of()], ["shoes"])


def test_a_long_list_of_names_is_shortened(card_of: Card) -> None:
    card = card_of(labels=[f"class-{k}" for k in range(1000)])
    assert "1000 in all" in refused({"label": "sandal"}, card)["label"]


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["ddim", "ddpm", "png", "sneaker", "both"])
)
# A variation is replaced by the fields of its image before (`app.admission.variations`).
NAMES = [name for name in GenerateRequest.model_fields if name != "variation"]
BODIES = st.dictionaries(st.sampled_from(NAMES), SCALARS | st.lists(SCALARS, max_size=2))


@settings(max_examples=150, deadline=None)
@given(body=BODIES)
def test_every_request_is_refused_or_fits_the_card(body: dict[str, Any], card_of: Card) -> None:
    card = card_of()
    try:
        request = parsed(body, card)
    except (ValidationError, InvalidRequest):
        return
    assert 1 <= request.n <= card.max_images
    assert 0 <= request.seed <= 2**53 - request.n
    assert 1 <= request.steps <= card.timesteps
    assert 0 <= request.preview_every <= request.steps
    assert request.sampler in card.samplers
    assert 0 <= request.eta <= 1
    assert 1 <= request.guidance_scale <= 20
    assert request.guidance_scale == 1 or request.label is not None
    assert request.label is None or card.labels[request.label] == request.label_name


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([], "1"),
        ([1, 2], "2 after 1 does not fall"),
        ([2, 1, 1], "1 after 1 does not fall"),
        ([2, 2 - 1e-12], "2 after 2 does not fall"),
        ([200, 1], "200 is outside the model's noise levels (allowed: 0.01 … 157.4)"),
        ([1, 0.001], "0.001 is outside the model's noise levels"),
        ([0], "0 is outside the model's noise levels"),
        ([150 - k / 10 for k in range(1001)], "1001 levels are too many"),
        ([1] * 1002, "1001"),
        (3, "list"),
        ([3, "2"], "number"),
        ([True], "number"),
    ],
)
def test_levels_that_do_not_fall_within_the_range_of_the_model_are_refused(
    sigmas: Any, message: str, card_of: Any
) -> None:
    found = refused({"sigmas": sigmas}, card_of())
    assert {name.partition(".")[0] for name in found} <= {"sigmas", "steps"}
    assert any(message in each for each in found.values())


def test_the_number_of_levels_is_the_number_of_steps(card_of: Any) -> None:
    """A 0 at the end, where every run ends, may be given."""
    for sigmas, steps in (([14.6, 0.5, 0.0], None), ([14.6, 0.5], 2)):
        request = resolve_request(GenerateRequest(sigmas=sigmas, steps=steps).fields(), card_of())
        assert (request.sigmas, request.steps) == ([14.6, 0.5], 2)


@pytest.mark.parametrize("interval", [[2, 1], [1, 1], [1], [1, 2, 3], [-1, 2], ["0", 1], 3])
def test_an_interval_of_guidance_is_a_low_and_a_higher_level(interval: Any, card_of: Any) -> None:
    found = refused({"label": 0, "guidance_interval": interval}, card_of())
    assert {name.partition(".")[0] for name in found} == {"guidance_interval"}


def test_a_card_has_a_default_interval_for_its_default_guidance(card_of: Any) -> None:
    card = card_of(default={"sampler": "ddim", "steps": 20, "guidance_scale": 2.5, "guidance_interval": [0.2, 2]})
    assert parsed({"label": 0}, card).guidance_interval == [0.2, 2.0]
    assert parsed({"label": 0, "guidance_interval": [0, 1]}, card).guidance_interval == [0.0, 1.0]
    assert parsed({"label": 0, "guidance_scale": 3}, card).guidance_interval is None
    assert parsed({}, card).guidance_interval is None


def test_the_levels_of_a_card_go_with_its_sampler(card_of: Any) -> None:
    """A picture names its sampler, so the levels of a card that came later do not change it."""
    own = {"sampler": "ddim", "steps": 20, "guidance_scale": 2.5, "spacing": "beta", "sigma_max": 30.0}
    card = card_of(default=own)
    plain = parsed({"label": 0}, card)
    assert (plain.spacing, plain.sigma_min, plain.sigma_max) == ("beta", None, 30.0)
    assert parsed({"steps": 7}, card).spacing == "beta"
    lower = parsed({"sigma_max": 9.0}, card)
    assert (lower.spacing, lower.sigma_max) == ("beta", 9.0)
    for named in ({"sampler": "ddim"}, {"spacing": "trailing"}, {"karras": False}, {"sigmas": [2.0, 1.0]}):
        request = parsed(named, card)
        assert (request.spacing, request.sigma_max) == (named.get("spacing"), None)
    older = {"label": 0, "sampler": "ddim", "steps": 20, "guidance_scale": 2.5, "guidance_rescale": 0.0, "seed": 3}
    assert parsed(older, card) == parsed(older, card_of())
    again = {**plain.parameters(0, ""), "model": None}
    del again["numerics"]
    assert parsed(again, card_of()).spacing == "beta", "the picture names the levels"


def test_a_card_names_its_levels_one_by_one(card_of: Any) -> None:
    own = {"sampler": "ddim", "steps": 3, "sigmas": [20.0, 3.0, 0.2], "spacing": "beta"}
    card = card_of(default=own)
    plain = parsed({}, card)
    assert (plain.sigmas, plain.steps, plain.spacing) == ([20.0, 3.0, 0.2], 3, None)
    for named in ({"steps": 9}, {"sigma_max": 5.0}):
        assert (parsed(named, card).sigmas, parsed(named, card).spacing) == (None, "beta")
    assert parsed({"sampler": "ddim", "steps": 9}, card).spacing is None


def test_learned_levels_are_for_the_requests_that_they_were_fitted_to(card_of: Any) -> None:
    grid = {"sigma_min": 0.01, "sigma_max": 157.4, "learned": [{"sampler": "heun", "sigmas": [9.0, 1.0]}]}
    card = card_of(spacings=["trailing", "learned"], grid=grid)
    assert parsed({"sampler": "heun", "steps": 2, "spacing": "learned"}, card).spacing == "learned"
    allowed = "(allowed with: heun in 2 steps)"
    for named, found in (
        ({"sampler": "heun", "steps": 3}, "heun in 3"),
        ({"steps": 2}, "ddim in 2"),
        ({}, "ddim in 20"),
    ):
        message = f'"learned" has no levels for {found} steps {allowed}'
        assert refused({**named, "spacing": "learned"}, card) == {"spacing": message}
    bounded = refused({"sampler": "heun", "steps": 2, "spacing": "learned", "sigma_max": 5}, card)
    assert bounded == {"sigma_max": "5 needs a spacing with bounds (one of: none)"}
    assert "not offered by shoes (offered: leading" in refused({"spacing": "learned"}, card_of())["spacing"]
