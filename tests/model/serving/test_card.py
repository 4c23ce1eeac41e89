"""The model card: what a model says about itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from denoised.model.checkpoints.card_file import CardFile, read_card_file
from denoised.model.serving.card import ModelCard
from denoised.model.serving.loading import load_model


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
