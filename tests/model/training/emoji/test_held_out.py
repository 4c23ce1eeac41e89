"""Which combinations of object, style and color are never trained on."""

from __future__ import annotations

import numpy as np
import pytest

from denoised.model.training.emoji.emoji_pictures import COLOR_NAMES, EmojiObject, EmojiPictures
from denoised.model.training.emoji.held_out import held_out_combinations
from denoised.model.training.emoji.styles import STYLE_NAMES

OBJECTS, STYLES, COLORS = 400, len(STYLE_NAMES), len(COLOR_NAMES)
FLUENT, FLAT = STYLE_NAMES.index("fluent"), STYLE_NAMES.index("flat")


@pytest.fixture(scope="module")
def many() -> EmojiPictures:
    """400 objects in all styles; the drawings themselves do not matter."""
    return EmojiPictures(
        rgba=np.broadcast_to(np.zeros(4, dtype=np.uint8), (OBJECTS * STYLES, 64, 64, 4)),
        objects=tuple(EmojiObject(f"{k:x}", f"object {k}", ()) for k in range(OBJECTS)),
        object_of=np.arange(OBJECTS * STYLES) // STYLES,
        style_of=np.arange(OBJECTS * STYLES) % STYLES,
    )


@pytest.fixture(scope="module")
def held(many: EmojiPictures) -> np.ndarray:
    """(objects, styles, colors) whether each is held out."""
    return held_out_combinations(many).reshape(OBJECTS, STYLES, COLORS)


def test_300_pairs_of_object_and_style_are_held_out_in_every_color(held: np.ndarray) -> None:
    pairs = held.all(axis=2)  # (objects, styles)
    assert pairs.sum() == 300
    assert (pairs[:, FLUENT] == pairs[:, FLAT]).all(), "they share their shapes"
    assert (~pairs).sum(axis=1).min() >= 3, "every object is seen in other styles"


def test_a_tenth_of_the_pairs_of_object_and_color_are_held_out_in_every_style(held: np.ndarray) -> None:
    assert held.all(axis=1).sum() == round(0.1 * OBJECTS * COLORS)


def test_three_cells_of_style_and_color_are_held_out_of_all_objects(held: np.ndarray) -> None:
    cells = np.argwhere(held.all(axis=0))
    assert len(cells) == 3
    assert len(set(cells[:, 0])) == len(set(cells[:, 1])) == 3, "of three styles and three colors"


def test_nothing_else_is_held_out(held: np.ndarray) -> None:
    pairs, colors, cells = held.all(axis=2), held.all(axis=1), held.all(axis=0)
    assert (held == (pairs[:, :, None] | colors[:, None, :] | cells[None])).all()


def test_the_rule_does_not_depend_on_the_order_of_the_drawings(many: EmojiPictures, held: np.ndarray) -> None:
    order = np.random.default_rng(0).permutation(len(many))
    shuffled = EmojiPictures(many.rgba, many.objects, many.object_of[order], many.style_of[order])
    again = held_out_combinations(shuffled).reshape(-1, COLORS)
    assert (again == held.reshape(-1, COLORS)[order]).all()


def test_another_seed_holds_out_others(many: EmojiPictures, held: np.ndarray) -> None:
    other = held_out_combinations(many, seed="another").reshape(held.shape)
    assert 0.02 < (other & held).mean() < 0.5 * held.mean()
