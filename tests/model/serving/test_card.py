"""The model card: what a model says about itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from denoised.model.checkpoints.card_file import CARD_FILE, CardFile, read_card_file
from denoised.model.errors import CheckpointError
from denoised.model.serving.card import ModelCard
from denoised.model.serving.loading import ZOO, load_model


@pytest.fixture
def card(folder: Callable[..., Path]) -> ModelCard:
    return load_model(folder(labels=("T-Shirt", "Bag", "Ankle boot"))).card


@pytest.mark.parametrize(
    ("label", "index"),
    [("Bag", 1), ("bag", 1), (" ANKLE BOOT ", 2), (0, 0), (2, 2)],
)
def test_a_label_is_a_name_in_any_case_or_an_index(card: ModelCard, label: str | int, index: int) -> None:
    assert card.class_index(label) == index


@pytest.mark.parametrize("label", ["hat", "", 3, -1, "1", True])
def test_an_unknown_label_is_no_class(card: ModelCard, label: str | int) -> None:
    """mathematics.md, trap 24: K and −1 are no classes; K is the null class and cannot be requested."""
    assert card.class_index(label) is None


def test_a_card_survives_json(card: ModelCard) -> None:
    assert ModelCard.model_validate_json(card.model_dump_json()) == card


def test_a_folder_without_a_card_has_an_empty_one(tmp_path: Path) -> None:
    assert read_card_file(tmp_path) == CardFile()


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_a_served_card_says_what_the_folder_says_of_itself(name: str) -> None:
    folder = ZOO / name
    card, written = load_model(folder).card, read_card_file(folder)
    assert (card.description, card.data, card.license) == (written.description, written.data, written.license)
    assert all((card.description, card.data, card.license))
    assert card.distilled is False


def test_what_a_card_says_has_bounds(tmp_path: Path) -> None:
    for key, value in (("description", "x" * 2001), ("license", "x" * 2001), ("credits", ["x"] * 201)):
        (tmp_path / CARD_FILE).write_text(json.dumps({key: value}))
        with pytest.raises(CheckpointError, match=f"{CARD_FILE}: {key}: "):
            read_card_file(tmp_path)
