"""The classes that prompts in plain words name."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from denoised.app.compat.prompts import find_labels, label_of
from denoised.app.http.errors import InvalidRequest
from denoised.model.serving.card import ModelCard

GARMENTS = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
ZALANDO = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
DIGITS = [str(digit) for digit in range(10)]
Card = Callable[..., ModelCard]

NAMED = [
    (GARMENTS, "a sneaker, please", "sneaker"),
    (GARMENTS, "sneaker", "sneaker"),
    (GARMENTS, "  SNEAKERS!!! ", "sneaker"),
    (GARMENTS, "Draw me 2 red Sneakers at night", "sneaker"),
    (GARMENTS, "the sneaker's sole", "sneaker"),
    (GARMENTS, "an ankle-boot", "ankle boot"),
    (GARMENTS, "ANKLE\nBOOTS on a table", "ankle boot"),
    (GARMENTS, "a pair of ankleboots", "ankle boot"),
    (GARMENTS, "a t-shirt", "t-shirt"),
    (GARMENTS, "a T shirt", "t-shirt"),
    (GARMENTS, "three tshirts", "t-shirt"),
    (GARMENTS, "a shirt", "shirt"),
    (GARMENTS, "dresses", "dress"),
    (GARMENTS, "a pair of trousers", "trouser"),
    (GARMENTS, "a sneaker beside another sneaker", "sneaker"),
    (GARMENTS, "7", "sneaker"),
    (GARMENTS, " 9 ", "ankle boot"),
    (GARMENTS, "x" * 31_000 + " bag", "bag"),
    (ZALANDO, "a top", "T-shirt/top"),
    (ZALANDO, "two t-shirts", "T-shirt/top"),
    (ZALANDO, "t-shirt/TOP", "T-shirt/top"),
    (DIGITS, "7", "7"),
    (DIGITS, "a seven, please", "7"),
    (DIGITS, "the digit 0", "0"),
    (DIGITS, "some sixes", "6"),
    (["ботинок", "шапка"], "БОТИНОК, пожалуйста", "ботинок"),
    (["Straße", "x"], "eine STRASSE", "Straße"),
    (["leaf", "knife", "puppy", "bus", "glass"], "leaves", "leaf"),
    (["leaf", "knife", "puppy", "bus", "glass"], "some knives", "knife"),
    (["leaf", "knife", "puppy", "bus", "glass"], "puppies", "puppy"),
    (["leaf", "knife", "puppy", "bus", "glass"], "buses", "bus"),
    (["leaf", "knife", "puppy", "bus", "glass"], "glasses", "glass"),
    (["hot_dog", "dog"], "a hot dog", "hot_dog"),
    (["hot_dog", "dog"], "a dog", "dog"),
    (["tabby, tabby cat", "lion"], "a tabby cat", "tabby, tabby cat"),
    (["one"], "1", "one"),
    (["Dog", "dog"], "dog", "dog"),
    (["1", "2", "3"], "2", "2"),
    (["1", "2", "3"], " 0 ", "1"),
    (["a b a", "b a"], "a b a", "a b a"),
    (["a b a", "b a"], "a b b a", "b a"),
    (["big dog house", "dog", "dog house"], "a big dog house", "big dog house"),
    (["a a", "a"], "a a a", "a a"),
    (["tea", "caf\u00e9"], "a cafe\u0301, please", "caf\u00e9"),
]


@pytest.mark.parametrize(("labels", "prompt", "label"), NAMED, ids=[prompt[:30] for _, prompt, _ in NAMED])
def test_plain_words_find_their_label(labels: list[str], prompt: str, label: str, card_of: Card) -> None:
    index = label_of(prompt, card_of(labels=labels))
    assert index is not None
    assert labels[index] == label


REFUSED = [
    (GARMENTS, "a sneaker or a bag"),
    (GARMENTS, "a shirt under a t-shirt"),
    (GARMENTS, "a cat"),
    (GARMENTS, "sneakerish"),
    (GARMENTS, "bagpipes"),
    (GARMENTS, "a boot"),
    (GARMENTS, "boot ankle"),
    (GARMENTS, "10"),
    (GARMENTS, "-1"),
    (GARMENTS, "7 8"),
    (GARMENTS, "9" * 5000),
    (GARMENTS, "?!"),
    (DIGITS, "seventeen"),
    (DIGITS, "17"),
    (["princess", "x"], "princes"),
    (["Dog", "dog"], "DOG"),
    (["crane", "crane"], "the crane"),
    (["", "-", "x"], "nothing"),
]


@pytest.mark.parametrize(("labels", "prompt"), REFUSED, ids=[prompt[:30] for _, prompt in REFUSED])
def test_a_prompt_with_no_class_or_several_is_refused_with_the_labels(
    labels: list[str], prompt: str, card_of: Card
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        label_of(prompt, card_of(labels=labels))
    (error,) = refused.value.extra["errors"]
    assert error["field"] == "prompt"
    assert ", ".join(labels) in error["message"]
    assert len(error["message"]) < 500


def test_ambiguous_labels_are_named(card_of: Card) -> None:
    with pytest.raises(InvalidRequest, match=r"names several classes \(sneaker, bag\)"):
        label_of("a bag and a sneaker", card_of(labels=GARMENTS))


def test_a_blank_prompt_is_unconditional(card_of: Card) -> None:
    assert label_of("", card_of()) is None
    assert label_of(" \n", card_of(labels=[])) is None
    with pytest.raises(InvalidRequest, match=r"only with labels.*sneaker"):
        label_of("", card_of(unconditional=False))
    with pytest.raises(InvalidRequest, match="has no labels"):
        label_of("a sneaker", card_of(labels=[]))


def test_words_of_a_longer_label_do_not_match_a_shorter_one() -> None:
    assert find_labels("a t-shirt", ["shirt", "t-shirt"]) == [1]
    assert find_labels("a t-shirt and a shirt", ["shirt", "t-shirt"]) == [0, 1]
    assert find_labels("the hot dog stand", ["hot dog", "dog", "dog stand"]) == [0, 2]


@pytest.mark.parametrize(
    ("labels", "prompt", "found"),
    [
        (["दिन", "दान"], "एक दान", [1]),  # vowel signs alone tell them apart
        (["दिन"], "एक दान", []),
        (["बिल्ली", "हाथी"], "एक हाथी, कृपया", [1]),
        (["มา", "ม้า"], "ม้า 1", [1]),  # "come" and "horse", by a vowel and a tone
        (["كِتاب", "كاتب"], "هذا كِتاب", [0]),
        (["x", "x̌"], "an x̌", [1]),  # no composed character exists
        (["naïve"], "a nai\u0308ve one", [0]),
        (["1", "2"], "a 2\ufe0f\u20e3", []),  # a keycap is another word
        (["sneaker"], "a sneak\u00ader", [0]),  # a soft hyphen is invisible
        (["heart"], "❤\ufe0f heart", [0]),
        (["heart"], "\u0301 \u200b", []),
    ],
)
def test_combining_marks_belong_to_their_word_in_every_script(labels: list[str], prompt: str, found: list[int]) -> None:
    assert find_labels(prompt, labels) == found


def test_a_long_prompt_and_a_thousand_labels_are_matched_quickly(card_of: Card) -> None:
    """A slow match would block other clients."""
    labels = [f"thing {k}" for k in range(1000)]
    started = time.thread_time()
    with pytest.raises(InvalidRequest):
        label_of("thing " * 5300, card_of(labels=labels))
    assert time.thread_time() - started < 10.0
