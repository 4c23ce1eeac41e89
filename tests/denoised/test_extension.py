"""`denoised generate --extend`: where the picture lies on its canvas, and what is new there."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from denoised.cli.extension import Extension, extend, lay_out, parse_extension
from denoised.client.model import Model

GIVEN: dict[str, Any] = {"sampler": "ddim", "steps": 9, "guidance_scale": 1.0}


def model(**card: Any) -> Model:
    """A model of 64×64 pixels with 16×16 latents, in multiples of 8 up to 128×128, or as `card` says."""
    facts: dict[str, Any] = {"name": "painter", "width": 64, "height": 64, "channels": 3, "labels": [], "timesteps": 9}
    facts |= {"prediction_type": "epsilon", "samplers": ["ddim"], "default": GIVEN, "max_images": 4, "numerics": ""}
    facts |= {"workers": 1, "inputs": ["prompt", "image", "mask"], "size_multiple": 8, "max_pixels": 128 * 128}
    return Model.from_json({**facts, "latent": {"downscale": 4}, **card})


FIXED = {"size_multiple": None, "max_pixels": None, "latent": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("25", Extension(0.25, 0.25, 0.25, 0.25)),
        ("50%", Extension(0.5, 0.5, 0.5, 0.5)),
        ("right=50,top=10", Extension(right=0.5, top=0.1)),
        ("left=200", Extension(left=2.0)),
    ],
)
def test_edges_are_lengthened_by_percent_of_their_side(text: str, expected: Extension) -> None:
    assert parse_extension(text) == expected


@pytest.mark.parametrize("text", ["", "0", "left", "up=5", "left=-1", "left=201", "left=nan", "left=1,left=2", "1,2"])
def test_another_text_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="allowed: PERCENT for all edges, or EDGE=PERCENT"):
        parse_extension(text)


@pytest.mark.parametrize(
    ("card", "text", "size", "place"),
    [
        ({}, "right=50", (96, 64), (0, 0, 64, 64)),
        ({}, "25", (96, 96), (16, 16, 80, 80)),
        ({}, "left=10", (72, 64), (8, 0, 72, 64)),  # 70.4 pixels, in multiples of 8
        ({}, "100", (64, 64), (24, 24, 44, 44)),  # beyond max_pixels: a third of the size, in whole latents
        (FIXED, "right=100", (64, 64), (0, 16, 32, 48)),
        (FIXED, "25", (64, 64), (11, 11, 54, 54)),
    ],
)
def test_a_canvas_grows_with_the_model_or_the_picture_shrinks(card: Any, text: str, size: Any, place: Any) -> None:
    layout = lay_out((64, 64), parse_extension(text), model(**card))
    assert (layout.size, layout.place) == (size, place)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_picture_stays_and_the_rest_is_masked(dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (64, 64), dtype=dtype)
    fields = extend({"image": png(pixels), "seed": 3}, Extension(right=0.5), model())
    assert (fields["width"], "height" in fields, fields["seed"]) == (96, True, 3)
    image, mask = (np.asarray(Image.open(io.BytesIO(fields[name]))) for name in ("image", "mask"))  # type: ignore[literal-required]
    assert (image.shape, mask.shape) == ((64, 96, 3), (64, 96))
    assert (mask[:, :64] == 0).all()
    assert (mask[:, 64:] == 255).all()
    expected = pixels if dtype is np.uint8 else pixels // 256
    assert np.abs(image[:, :64, 0].astype(int) - expected).max() == 0


@pytest.mark.parametrize(
    ("fields", "card", "words"),
    [
        ({}, {}, "needs the file of a picture: --image"),
        ({"image": "job:1/images/0"}, {}, "needs the file of a picture: --image"),
        ({"image": b"", "mask": b""}, {}, "leave --mask out"),
        ({"image": b""}, {}, "is no picture"),
        ({"image": b"", "model": "painter"}, {"inputs": ["prompt", "image"]}, "painter takes no picture with a mask"),
    ],
)
def test_what_cannot_be_extended_is_refused(fields: Any, card: Any, words: str) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        extend(fields, Extension(right=0.5), model(**card))
