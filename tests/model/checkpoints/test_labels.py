"""How a label names a class, which classes a network has, and which cards are refused."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoised.model.checkpoints.card_file import CardFile
from denoised.model.checkpoints.labels import check_labels, class_index, class_index_of_text, read_classes
from denoised.model.errors import CheckpointError, PlanError
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.loading import load_model

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
NUMBERS = [str(number) for number in range(1, 13)]


@pytest.mark.parametrize(
    ("labels", "label", "index"),
    [
        (["Dog", "dog"], "dog", 1),
        (["Dog", "dog"], "Dog", 0),
        (["Dog", "dog"], "DOG", None),
        (["Dog", "cat"], "dOG", 0),
        (["cat", COMPOSED], DECOMPOSED, 1),
        (["cat", DECOMPOSED], COMPOSED, 1),
        ([COMPOSED, COMPOSED.upper()], DECOMPOSED.upper(), 1),
        (["cat", COMPOSED], DECOMPOSED.upper(), 1),
        (["Straße"], "STRASSE", 0),
        (["Straße", "Strasse"], "strasse", None),
        (["Straße", "strasse"], "strasse", 1),
        (["ankle boot"], "  Ankle Boot ", 0),
        (["1", "10", "2"], "2", 2),
        (["1", "10", "2"], 2, 2),
        (["1", "10", "2"], "3", None),
        (NUMBERS, "2", 1),
        (NUMBERS, 2, 2),
        (NUMBERS, 12, None),
        (NUMBERS, -1, None),
        (NUMBERS, True, None),
        (["a", "a"], "a", None),
    ],
)
def test_an_exact_name_wins_then_a_normalized_one_then_one_in_another_case(
    labels: list[str], label: str | int, index: int | None
) -> None:
    assert class_index(label, labels) == index


@pytest.mark.parametrize(
    ("labels", "text", "index"),
    [
        (NUMBERS, "2", 1),
        (NUMBERS, "12", 11),
        (NUMBERS, "0", 0),
        (["1", "10", "2"], "10", 1),
        (["cat", "dog"], "1", 1),
        (["cat", "dog"], " 1 ", 1),
        (["cat", "dog"], "2", None),
        (["cat", "dog"], "-1", None),
        (["cat", "dog"], "1.0", None),
        (["cat", "dog"], "٢", None),
        (["cat", "dog"], "9" * 5000, None),
        (["Dog", "dog"], "DOG", None),
    ],
)
def test_typed_digits_are_a_name_before_they_are_an_index(labels: list[str], text: str, index: int | None) -> None:
    assert class_index_of_text(text, labels) == index


@given(text=st.text(st.sampled_from("0123456789²٣ \t\x1c\x1d\x85\u00a0\u2003-+."), max_size=12))
def test_typed_text_is_an_index_or_nothing_whatever_spaces_are_around_it(text: str) -> None:
    digits = text.strip()
    is_index = digits.isascii() and digits.isdecimal() and len(digits) < 10 and int(digits) < 3
    assert class_index_of_text(text, ["cat", "dog", "bird"]) == (int(digits) if is_index else None)


@given(labels=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12))
def test_every_label_of_an_accepted_card_names_its_own_class(labels: list[str]) -> None:
    """In the form of the card, in either normalization of Unicode, and with spaces around it."""
    try:
        check_labels(labels)
    except CheckpointError:
        return
    for index, label in enumerate(labels):
        assert class_index(label, labels) == index
        assert class_index_of_text(label, labels) == index
        for form in ("NFC", "NFD"):
            assert class_index(f" {unicodedata.normalize(form, label)} ", labels) == index  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["cat", COMPOSED, DECOMPOSED], "labels[1], labels[2] are the same name 'café'"),
        (["cat", "dog", "cat"], "labels[0], labels[2] are the same name 'cat'"),
        (["cat", "cat "], "labels[0], labels[1] are the same name 'cat'"),
        (["cat", " "], "labels[1] = ' ' is blank"),
        (["cat", ""], "labels[1] = '' is blank"),
        (["cat", "\u200b\u2060"], "labels[1] = '\\u200b\\u2060' is blank"),
        (["cat", "dog\n"], "labels[1] = 'dog\\n' has control characters"),
        (["x" * 201], "labels[0] has 201 characters (allowed: 200)"),
    ],
)
def test_a_card_with_ambiguous_labels_is_refused(labels: list[str], problem: str, folder: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError) as refused:
        check_labels(labels)
    assert problem in str(refused.value)
    with pytest.raises(CheckpointError, match=r"model_card\.json"):
        load_model(folder(labels=tuple(labels)))


def card(**fields: Any) -> CardFile:
    return CardFile.model_validate(fields)


ABC = ["a", "b", "c"]
TRAINED = {"label_dropout": 0.1}


@pytest.mark.parametrize(
    ("given", "rows", "kind", "labels", "unconditional"),
    [
        ({}, None, None, [], True),
        ({}, 10, None, [str(k) for k in range(10)], False),
        ({}, 1, None, ["0"], False),
        ({"unconditional": True}, 4, None, ["0", "1", "2"], True),
        ({"unconditional": False}, 4, None, ["0", "1", "2", "3"], False),
        ({"unconditional": True}, 1, None, [], True),
        ({"training": TRAINED}, 4, None, ["0", "1", "2"], True),
        ({"labels": ABC}, 3, None, ABC, False),
        ({"labels": ABC}, 4, None, ABC, True),
        ({"labels": ABC, "unconditional": True}, 4, None, ABC, True),
        ({"labels": ABC, "unconditional": False}, 4, None, ABC, False),
        ({"labels": ABC, "training": TRAINED}, 4, None, ABC, True),
        ({"labels": ABC, "training": {"label_dropout": 0.0}}, 4, None, ABC, False),
        ({"labels": ABC, "training": TRAINED}, 3, None, ABC, False),
        ({"labels": ABC}, None, "timestep", ABC, False),
        ({"labels": ABC}, 7, "timestep", ABC, False),
        ({}, 3, "timestep", ["0", "1", "2"], False),
    ],
)
def test_a_null_class_exists_only_if_the_card_or_the_training_says_so(
    given: dict[str, Any], rows: int | None, kind: str | None, labels: list[str], unconditional: bool
) -> None:
    classes = read_classes(Path("boots"), card(**given), rows, kind)
    assert (classes.labels, classes.unconditional) == (labels, unconditional)


@pytest.mark.parametrize(
    ("given", "rows", "kind", "problem"),
    [
        ({"labels": ABC}, None, None, "labels: 3 names, but the U-Net has no classes"),
        ({"unconditional": False}, None, None, "unconditional = false, but the U-Net has no classes"),
        ({"labels": ABC}, 5, None, "labels: 3 names, but num_class_embeds = 5 (allowed: 5, or 4 if the last"),
        ({"labels": ABC, "unconditional": True}, 3, None, "labels: 3 names, but num_class_embeds = 3 (allowed: 2, si"),
        ({"unconditional": True}, None, "timestep", "every number is a class"),
        ({}, None, "timestep", "labels is missing: class_embed_type = 'timestep' takes numbers"),
    ],
)
def test_a_card_that_contradicts_the_config_is_refused(
    given: dict[str, Any], rows: int | None, kind: str | None, problem: str
) -> None:
    with pytest.raises(CheckpointError) as refused:
        read_classes(Path("boots"), card(**given), rows, kind)
    assert problem in str(refused.value)


def test_a_default_of_the_card_that_needs_a_null_class_is_off_without_one(
    folder: Callable[..., Path], conditional: UNetConfig
) -> None:
    path = folder(conditional, labels=("a", "b", "c", "d"))
    (path / "model_card.json").write_text(
        card(labels=["a", "b", "c", "d"], default={"guidance_scale": 1.5, "guidance_rescale": 0.7}).model_dump_json()
    )
    default = load_model(path).card.default
    assert (default.guidance_scale, default.guidance_rescale) == (1.0, 0.0)


def test_an_index_beyond_the_classes_is_refused_by_the_model_too(folder: Callable[..., Path]) -> None:
    """A job that was queued for other classes under the same name."""
    model = load_model(folder())
    for index in (-1, 3, 4):
        with pytest.raises(PlanError, match=rf"label = {index} is not a class of boots \(3 classes from 0\)"):
            model.encode([ConditioningRequest(label=index)])
