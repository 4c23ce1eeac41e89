"""Rendered drawings on background colors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from denoised.model.errors import DataError
from denoised.model.training.emoji.emoji_pictures import COLORS, EmojiPictures, render_pictures
from denoised.model.training.emoji.icon_packages import Emoji


def test_the_twelve_background_colors_are_those_of_the_captions() -> None:
    assert dict(COLORS) == {
        "white": (255, 255, 255),
        "black": (0, 0, 0),
        "grey": (128, 128, 128),
        "red": (220, 40, 40),
        "orange": (250, 140, 40),
        "yellow": (250, 210, 50),
        "green": (60, 170, 80),
        "teal": (30, 150, 150),
        "blue": (50, 100, 220),
        "purple": (140, 70, 190),
        "pink": (250, 150, 190),
        "brown": (130, 80, 40),
    }


def test_a_drawing_is_shown_on_each_color_by_its_alpha(pictures: EmojiPictures) -> None:
    assert pictures.rgba.shape == (25, 64, 64, 4)
    assert pictures.combinations == 25 * 12
    images = pictures.on_colors(np.arange(12))
    assert images.shape == (12, 3, 64, 64)
    for image, color in zip(images, COLORS.values(), strict=True):
        assert tuple(image[:, 0, 0].tolist()) == color, "the corner is transparent"
        assert tuple(image[:, 32, 32].tolist()) == (255, 0, 0), "the middle is opaque"


def test_half_transparent_pixels_mix_with_the_background(pictures: EmojiPictures) -> None:
    half = EmojiPictures(
        rgba=np.full((1, 64, 64, 4), (200, 0, 100, 51), dtype=np.uint8),
        objects=pictures.objects[:1],
        object_of=np.zeros(1, dtype=np.int64),
        style_of=np.zeros(1, dtype=np.int64),
    )
    white, black = half.on_colors(np.array([0, 1]))[:, :, 0, 0]
    assert white.tolist() == [244, 204, 224]  # 0.2·drawing + 0.8·255
    assert black.tolist() == [40, 0, 20]


def test_a_drawing_that_is_not_square_is_centered() -> None:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="32" height="16" viewBox="0 0 32 16">'
        '<path fill="red" d="M0 0h32v16H0z"/></svg>'
    )
    rgba = render_pictures([Emoji("1f41f", "fish", (), {"noto": svg})]).rgba[0]
    assert rgba[32, 1, 3] == 255
    assert rgba[4, 32, 3] == rgba[59, 32, 3] == 0
    assert (rgba[20:44, 32, 3] == 255).all()


def test_a_drawing_that_cannot_be_rendered_is_named() -> None:
    with pytest.raises(DataError, match=r"the drawing fish \(noto\) cannot be rendered"):
        render_pictures([Emoji("1f41f", "fish", (), {"noto": "<svg"})])


def test_pictures_are_stored_in_one_file(pictures: EmojiPictures, tmp_path: Path) -> None:
    pictures.save(tmp_path / "pictures.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures.npz"]
    read = EmojiPictures.load(tmp_path / "pictures.npz")
    assert np.array_equal(read.rgba, pictures.rgba)
    assert np.array_equal(read.object_of, pictures.object_of)
    assert np.array_equal(read.style_of, pictures.style_of)
    assert read.objects == pictures.objects


def test_a_file_that_is_not_complete_is_refused(pictures: EmojiPictures, tmp_path: Path) -> None:
    path = tmp_path / "pictures.npz"
    pictures.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"pictures\.npz is not a file of rendered pictures"):
        EmojiPictures.load(path)
