"""Latents as pictures: memory, scaling, precision, previews."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig
from denoised.model.serving.latent_pictures import DECODE_BYTES, FLOAT_BYTES, LIVE_MAPS, LatentPictures, published_rgb
from denoised.model.serving.pictures import to_uint8
from tests.text_pipelines import AUTOENCODER, stir

RGB = published_rgb(is_xl=False)
CONFIG = AutoencoderConfig.from_dict(AUTOENCODER)  # tiles of 8×8 latents, two pixels along each side of one
STABLE_DIFFUSION = replace(CONFIG, block_out_channels=(128, 256, 512, 512), sample_size=512)


@pytest.fixture
def autoencoder() -> Autoencoder:
    network = Autoencoder(CONFIG).eval().requires_grad_(False)
    stir(network, 0)
    return network


def draw(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 4, height, width, generator=torch.Generator().manual_seed(0))


class Decoded:
    """Records what an autoencoder decodes."""

    def __init__(self, autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.types: set[torch.dtype] = set()
        self._decode = autoencoder._decode
        monkeypatch.setattr(autoencoder, "_decode", self)

    def __call__(self, latents: Tensor) -> Tensor:
        self.shapes.append(tuple(latents.shape))
        self.types.add(latents.dtype)
        return self._decode(latents)


def test_images_are_decoded_one_by_one_in_float32(autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = Decoded(autoencoder, monkeypatch)
    latents = draw(3, 8, 12)
    pictures = LatentPictures(autoencoder, RGB).decode(latents.bfloat16())
    assert pictures.shape == (3, 16, 24, 3)
    assert decoded.shapes == [(1, 4, 8, 12)] * 3
    assert decoded.types == {torch.float32}


def test_an_image_over_the_memory_budget_is_decoded_in_tiles(
    autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = draw(2, 8, 24)
    budget = LIVE_MAPS * FLOAT_BYTES * CONFIG.largest_map(8, 24)
    expected = {
        tiled: to_uint8(torch.cat([autoencoder.decode(CONFIG.unscale(each), tiled=tiled) for each in latents.split(1)]))
        for tiled in (False, True)
    }
    decoded = Decoded(autoencoder, monkeypatch)
    assert (LatentPictures(autoencoder, RGB, budget).decode(latents) == expected[False]).all()
    assert set(decoded.shapes) == {(1, 4, 8, 24)}
    decoded.shapes.clear()
    assert (LatentPictures(autoencoder, RGB, budget - 1).decode(latents) == expected[True]).all()
    assert max(shape[3] for shape in decoded.shapes) == autoencoder.latent_tile
    assert (expected[True] != expected[False]).any()


def test_the_budget_takes_1024_pixels_of_stable_diffusion() -> None:
    assert STABLE_DIFFUSION.largest_map(128, 128) == 256 * 1024**2
    assert LIVE_MAPS * FLOAT_BYTES * STABLE_DIFFUSION.largest_map(128, 128) <= DECODE_BYTES
    assert LIVE_MAPS * FLOAT_BYTES * STABLE_DIFFUSION.largest_map(128, 136) > DECODE_BYTES


@pytest.mark.parametrize("side", [4, 6])
def test_the_largest_map_is_that_of_the_decoder(side: int, autoencoder: Autoencoder) -> None:
    sizes: list[int] = []
    for module in autoencoder.decoder.modules():
        module.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.numel()))
    autoencoder.decode(draw(1, side, side))
    assert max(sizes) == CONFIG.largest_map(side, side)


@pytest.mark.parametrize(
    "changes",
    [
        {"scaling_factor": 0.5, "shift_factor": 0.3},
        {"latents_mean": (0.1, -0.2, 0.3, 0.0), "latents_std": (0.5, 1.0, 1.5, 2.0)},
        {"force_upcast": False},
    ],
)
def test_latents_are_unscaled_as_the_config_says(changes: dict[str, object]) -> None:
    network = Autoencoder(replace(CONFIG, **changes)).eval()  # type: ignore[arg-type]
    stir(network, 0)
    latents = draw(1, 8, 8)
    with torch.inference_mode():
        expected = to_uint8(network.decode(network.config.unscale(latents)))
    assert (LatentPictures(network, RGB).decode(latents) == expected).all()


@pytest.mark.parametrize(("is_xl", "zero", "first"), [(False, 128, (165, 154, 154)), (True, 140, (210, 200, 190))])
def test_previews_have_the_published_colors(
    is_xl: bool, zero: int, first: tuple[int, ...], autoencoder: Autoencoder
) -> None:
    pictures = LatentPictures(autoencoder, published_rgb(is_xl=is_xl))
    latents = torch.zeros(2, 4, 8, 8)
    latents[1, 0] = 1.0
    preview = pictures.preview(latents)
    assert preview.shape == (2, 8, 8, 3)
    assert preview[0, 0, 0, 1] == zero
    assert tuple(preview[1, 0, 0]) == first
