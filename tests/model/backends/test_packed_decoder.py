"""An autoencoder's decoder with packed layers: the same function, and the same bytes in a batch of any size."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch

from denoised.model.backends.packed import PackedConv2d, can_pack
from denoised.model.backends.packed_decoder import pack_decoder
from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig
from denoised.model.serving.latent_pictures import FLOAT_BYTES, LIVE_MAPS, LatentPictures, published_rgb
from tests.text_pipelines import AUTOENCODER, stir

pytestmark = pytest.mark.skipif(not can_pack(torch.device("cpu")), reason="PyTorch has no oneDNN here")

RGB = published_rgb(is_xl=False)
CONFIGS: dict[str, dict[str, Any]] = {
    "own": AUTOENCODER,
    "four-times": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
        "sample_size": 32,
    },
    "without": {**AUTOENCODER, "use_post_quant_conv": False, "mid_block_add_attention": False},
}
SIDES = [(1, 1), (4, 4), (5, 7), (13, 9), (8, 24)]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def build(name: str) -> Autoencoder:
    network = Autoencoder(AutoencoderConfig.from_dict(CONFIGS[name])).eval().requires_grad_(False)
    stir(network, 0)
    return network


def draw(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(count, 4, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_packed_decoder_computes_the_same_function(name: str) -> None:
    own, packed = build(name), build(name)
    assert pack_decoder(packed) is None
    assert isinstance(packed.decoder.conv_in, PackedConv2d)
    latents = draw(2, 8, 8)
    with torch.inference_mode():
        expected = own.decode(latents)
        assert (packed.decode(latents) - expected).abs().max() <= 1e-5 * expected.abs().max()
        pixels = expected.clamp(-1, 1)
        assert torch.equal(packed.encode(pixels).mean, own.encode(pixels).mean), "the encoder is PyTorch's own"


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_picture_has_the_same_bytes_alone_and_in_a_batch(name: str, tiled: bool) -> None:
    network = build(name)
    assert pack_decoder(network) is None
    decode_bytes = LIVE_MAPS * FLOAT_BYTES * network.config.largest_map(8, 23) if tiled else 1 << 40
    for height, width in SIDES:
        latents = draw(5, height, width)
        pictures = LatentPictures(network, RGB, decode_bytes, batch_bytes=1 << 40, whole_batches=True)
        assert pictures.limit(height, width) >= len(latents)
        alone = [pictures.decode(each)[0] for each in latents.split(1)]
        for first, last in ((0, 2), (0, 5), (1, 4)):
            together = pictures.decode(latents[first:last])
            assert all((together[k - first] == alone[k]).all() for k in range(first, last)), (height, width)
        small = LatentPictures(network, RGB, decode_bytes, batch_bytes=1, whole_batches=True)
        assert small.limit(height, width) == 1
        assert (small.decode(latents)[3] == alone[3]).all()


def test_threads_that_share_a_picture_change_none_of_its_bytes(two_threads: None) -> None:
    network, latents = build("own"), draw(2, 16, 16)
    assert pack_decoder(network) is None
    pictures = LatentPictures(network, RGB, batch_bytes=1 << 40, whole_batches=True)
    assert (pictures.decode(latents)[1] == pictures.decode(latents[1:2])[0]).all()


def test_a_decoder_whose_packed_layers_compute_something_else_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    network, latents = build("own"), draw(1, 8, 8)
    before = deepcopy(network)

    def spoiled(parts: torch.nn.Module) -> torch.nn.Module:
        with torch.no_grad():
            parts.get_submodule("decoder.conv_out").weight.mul_(1.1)  # type: ignore[operator, union-attr]
        return parts

    monkeypatch.setattr("denoised.model.backends.packed_decoder.pack", spoiled)
    reason = pack_decoder(network)
    assert reason is not None
    assert "another function" in reason or "other bits" in reason
    assert torch.equal(network.decode(latents), before.decode(latents))
    assert LatentPictures(network, RGB).limit(8, 8) == 1, "then each image is decoded by itself"
