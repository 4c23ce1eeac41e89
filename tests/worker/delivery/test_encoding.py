"""Pixels as files: nothing is lost, nothing is added, and a PNG carries its parameters."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from denoised.jobs.sampling_request import SamplingRequest
from denoised.worker.delivery.pictures.encoding import encode, encode_frame

Pixels = npt.NDArray[np.uint8]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def noise(channels: int, height: int = 9, width: int = 13) -> Pixels:
    return np.random.default_rng(channels).integers(0, 256, (height, width, channels), dtype=np.uint8)


def opened(data: bytes) -> Pillow.Image:
    image = Pillow.open(io.BytesIO(data))
    image.load()
    return image


def parameters_of(data: bytes) -> Any:
    return json.loads(opened(data).text["parameters"])  # type: ignore[attr-defined]


def chunks(data: bytes) -> list[bytes]:
    """The kinds of chunks in a PNG (ISO 15948, 5.3)."""
    kinds, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kinds.append(data[at + 4 : at + 8])
        at += 12 + length
    return kinds


@settings(max_examples=60, deadline=None)
@given(parameters=st.dictionaries(st.text(), JSON, max_size=5))
def test_a_png_returns_any_parameters(parameters: dict[str, Any]) -> None:
    assert parameters_of(encode(noise(1), "png", parameters)) == parameters


def test_text_in_any_script_survives() -> None:
    """StabilityMatrix#1535: "テスト 🐈\\n" in the PNG, as iTXt."""
    data = encode(noise(1), "png", {"label": "テスト 🐈\n", "model": "Ж\u0000\x1b[31m"})
    assert parameters_of(data) == {"label": "テスト 🐈\n", "model": "Ж\u0000\x1b[31m"}
    assert chunks(data).count(b"iTXt") == 1
    assert "テスト".encode() in data


@pytest.mark.parametrize("format", ["png", "webp"])
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_and_webp_keep_every_pixel(format: str, channels: int, mode: str) -> None:
    pixels = noise(channels)
    image = opened(encode(pixels, format, {}))
    assert image.format == format.upper()
    if format == "png":
        assert image.mode == mode
    expected = Pillow.fromarray(pixels[..., 0] if channels == 1 else pixels).convert("RGB")
    assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_is_close(channels: int) -> None:
    ramp = np.linspace(0, 255, 32, dtype=np.uint8)
    pixels = np.stack([np.add.outer(ramp // 2, ramp // 2)] * channels, axis=-1).astype(np.uint8)
    image = opened(encode(pixels, "jpeg", {}))
    assert image.format == "JPEG"
    assert np.abs(np.asarray(image.convert("L")).astype(int) - pixels[..., 0]).max() <= 4


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_pixels_and_parameters_give_the_same_bytes(format: str, channels: int) -> None:
    one = encode(noise(channels), format, {"seed": 7, "label": "boot"})
    assert encode(noise(channels), format, {"seed": 7, "label": "boot"}) == one


def test_a_png_holds_its_pixels_and_parameters_and_nothing_else() -> None:
    """No time, no program's name, no path: only then are the same request's bytes the same tomorrow."""
    assert set(chunks(encode(noise(3), "png", {"seed": 1}))) == {b"IHDR", b"iTXt", b"IDAT", b"IEND"}
    for format in ("webp", "jpeg"):
        assert not opened(encode(noise(3), format, {"seed": 1})).getexif()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (64, 3)])
def test_a_picture_has_the_height_and_width_of_its_pixels(shape: tuple[int, int]) -> None:
    height, width = shape
    for format in ("png", "webp", "jpeg"):
        assert opened(encode(noise(3, height, width), format, {})).size == (width, height)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_frame_is_a_png_of_the_same_pixels(channels: int) -> None:
    pixels = noise(channels)
    image = opened(encode_frame(pixels))
    assert image.format == "PNG"
    assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_parameters_are_a_request_that_makes_the_picture_again(request_of: Callable[..., SamplingRequest]) -> None:
    """The HTTP contract: what differs from the defaults, and the seed; no key, host or path, no number of images."""
    request = request_of(label=2, n=4, seed=40, preview_every=2, preview="both", format="webp")
    assert request.parameters(3, "eager/cpu") == {
        "model": "fake",
        "label": "carrot",
        "seed": 43,
        "sampler": "ddim",
        "steps": 4,
        "guidance_scale": 1.0,
        "guidance_rescale": 0.0,
        "format": "webp",
        "numerics": "eager/cpu",
    }


@pytest.mark.parametrize("k", range(4))
def test_image_k_of_a_job_and_a_job_of_seed_plus_k_are_one_file(
    k: int, request_of: Callable[..., SamplingRequest]
) -> None:
    many = request_of(label=1, n=4, seed=100, preview_every=2).parameters(k, "fake")
    one = request_of(label=1, n=1, seed=100 + k).parameters(0, "fake")
    assert encode(noise(1), "png", many) == encode(noise(1), "png", one)
