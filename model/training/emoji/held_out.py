"""Which combinations of object, style and color are never trained on.

A model that draws them has understood the words, not learned pictures by heart. The rule orders names by a hash of
them and a seed, so it depends neither on a library's random numbers nor on the order of the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from denoised.model.training.emoji.emoji_pictures import COLOR_NAMES, EmojiPictures
from denoised.model.training.emoji.styles import STYLE_NAMES

SEED = "emoji 1"
OBJECT_STYLE_PAIRS = 300
OBJECT_COLOR_FRACTION = 0.1
STYLE_COLOR_CELLS = 3
# Fluent and flat drawings share their shapes, so that one would give the other away.
SHARED_SHAPES = ("fluent", "flat")


def held_out_combinations(
    pictures: EmojiPictures, pairs: int = OBJECT_STYLE_PAIRS, seed: str = SEED
) -> npt.NDArray[np.bool_]:
    """(N·C,) whether each combination (`EmojiPictures`) is held out.

    Held out are `pairs` pairs of an object and a style (at most one style of an object, or fluent and flat together),
    10 % of the pairs of an object and a color, and three whole pairs of a style and a color.
    """
    object_style = _object_style_pairs(pictures, pairs, seed)
    object_color = _object_color_pairs(pictures, seed)
    style_color = _style_color_cells(seed)
    mask = np.zeros((len(pictures), len(COLOR_NAMES)), dtype=np.bool_)
    for row, (index, style) in enumerate(_object_and_style(pictures)):
        code = pictures.objects[index].code
        for column, color in enumerate(COLOR_NAMES):
            mask[row, column] = (
                (code, style) in object_style or (code, color) in object_color or (style, color) in style_color
            )
    return mask.reshape(-1)


def _object_style_pairs(pictures: EmojiPictures, pairs: int, seed: str) -> set[tuple[str, str]]:
    units: dict[tuple[str, str], list[str]] = {}
    for index, style in _object_and_style(pictures):
        unit = SHARED_SHAPES[0] if style in SHARED_SHAPES else style
        units.setdefault((pictures.objects[index].code, unit), []).append(style)
    held: set[tuple[str, str]] = set()
    objects: set[str] = set()
    for code, unit in _in_hash_order(units, seed):
        styles = units[code, unit]
        # Every object keeps at least two styles.
        if code not in objects and len(held) + len(styles) <= pairs:
            objects.add(code)
            held |= {(code, style) for style in styles}
    return held


def _object_color_pairs(pictures: EmojiPictures, seed: str) -> set[tuple[str, str]]:
    all_pairs = [(each.code, color) for each in pictures.objects for color in COLOR_NAMES]
    return set(_in_hash_order(all_pairs, seed)[: round(OBJECT_COLOR_FRACTION * len(all_pairs))])


def _style_color_cells(seed: str) -> set[tuple[str, str]]:
    """Cells that differ in style and in color, so that each style and each color is seen with most others."""
    cells: list[tuple[str, str]] = []
    for style, color in _in_hash_order([(style, color) for style in STYLE_NAMES for color in COLOR_NAMES], seed):
        if len(cells) < STYLE_COLOR_CELLS and all(style != s and color != c for s, c in cells):
            cells.append((style, color))
    return set(cells)


def _object_and_style(pictures: EmojiPictures) -> Iterable[tuple[int, str]]:
    """The object and the style of each drawing."""
    return ((int(i), STYLE_NAMES[k]) for i, k in zip(pictures.object_of, pictures.style_of, strict=True))


def _in_hash_order(pairs: Iterable[tuple[str, str]], seed: str) -> list[tuple[str, str]]:
    return sorted(pairs, key=lambda pair: hashlib.sha256("/".join((seed, *pair)).encode()).digest())
