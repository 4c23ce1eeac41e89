"""The autoencoder against diffusers' `AutoencoderKL`: same names, same weights, same output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from denoised.model.checkpoints.legacy import modernize_tensor_name
from denoised.model.errors import CheckpointError
from denoised.model.networks.autoencoder.autoencoder import Autoencoder, LatentDistribution
from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig
from denoised.model.networks.autoencoder.tiling import evaluate_in_tiles

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
SMALL: dict[str, Any] = {
    "down_block_types": [DOWN] * 3,
    "up_block_types": [UP] * 3,
    "block_out_channels": [8, 16, 16],
    "norm_num_groups": 4,
    "sample_size": 32,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "three levels": SMALL,
    "two layers": {**SMALL, "layers_per_block": 2},
    "one level": {**SMALL, "down_block_types": [DOWN], "up_block_types": [UP], "block_out_channels": [8]},
    "16 latent channels, no quantization layers": {
        **SMALL,
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.1159,
    },
    "no attention": {**SMALL, "mid_block_add_attention": False},
    "grey": {**SMALL, "in_channels": 1, "out_channels": 1},
    "act_fn gelu": {**SMALL, "act_fn": "gelu"},
}
# The autoencoders of Stable Diffusion 1 and 2, of SDXL, of the x4 upscaler and of Playground 2.5.
KL_F8: dict[str, Any] = {
    "down_block_types": [DOWN] * 4,
    "up_block_types": [UP] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "sample_size": 512,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "stable diffusion": KL_F8,
    "sdxl": {**KL_F8, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    "x4 upscaler": {
        **KL_F8,
        "down_block_types": [DOWN] * 3,
        "up_block_types": [UP] * 3,
        "block_out_channels": [128, 256, 512],
        "sample_size": 256,
        "scaling_factor": 0.08333,
    },
    "playground": {
        **KL_F8,
        "scaling_factor": 0.5,
        "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
        "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
    },
}


def build(raw: dict[str, Any], stir: Callable[..., None]) -> tuple[AutoencoderKL, Autoencoder]:
    """diffusers' autoencoder and ours with the same random weights."""
    theirs, ours = AutoencoderKL(**raw).eval(), Autoencoder(AutoencoderConfig.from_dict(raw)).eval()
    stir(theirs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_weights_give_the_output_of_diffusers(name: str, stir: Callable[..., None]) -> None:
    """Encoding and decoding equal to 1e-5 in float32."""
    theirs, ours = build(CONFIGS[name], stir)
    config = ours.config
    pixels = draw(2, config.in_channels, 16, 24)
    with torch.inference_mode():
        expected, found = theirs.encode(pixels).latent_dist, ours.encode(pixels)
        latents = draw(2, config.latent_channels, 16 // config.downscale, 24 // config.downscale)
        pictures = ours.decode(latents)
        torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.log_variance, expected.logvar, rtol=0, atol=1e-5)
        torch.testing.assert_close(pictures, theirs.decode(latents).sample, rtol=0, atol=1e-5)
    assert pictures.shape == (2, config.out_channels, 16, 24)
    assert pictures.std() > 0.05, "the output of these weights is almost constant"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_tensors_of_diffusers(name: str) -> None:
    with torch.device("meta"):
        theirs = AutoencoderKL(**PUBLISHED[name]).state_dict()
        ours = Autoencoder(AutoencoderConfig.from_dict(PUBLISHED[name])).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_the_autoencoder_of_stable_diffusion_has_84_million_parameters() -> None:
    with torch.device("meta"):
        network = Autoencoder(AutoencoderConfig.from_dict(PUBLISHED["stable diffusion"]))
    assert sum(weight.numel() for weight in network.parameters()) == 83_653_863


def test_old_names_of_the_attention_are_translated() -> None:
    """The files of 2022 have the names of diffusers' first releases."""
    network = Autoencoder(AutoencoderConfig.from_dict(SMALL))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    names = []
    for name in network.state_dict():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        names.append(name)
    assert sum("proj_attn" in name for name in names) == 4
    assert [modernize_tensor_name(name) for name in names] == list(network.state_dict())


@pytest.mark.parametrize(("height", "width"), [(16, 16), (11, 8), (5, 19), (8, 9)])
def test_tiled_decoding_equals_that_of_diffusers(height: int, width: int, stir: Callable[..., None]) -> None:
    theirs, ours = build(SMALL, stir)
    theirs.enable_tiling()
    latents = draw(2, 4, height, width)
    with torch.inference_mode():
        expected, found = theirs.decode(latents).sample, ours.decode(latents, tiled=True)
    assert found.shape == (2, 3, 4 * height, 4 * width)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_tiled_encoding_equals_that_of_diffusers(stir: Callable[..., None]) -> None:
    theirs, ours = build(SMALL, stir)
    theirs.enable_tiling()
    pixels = draw(1, 3, 64, 44)
    with torch.inference_mode():
        expected, found = theirs.encode(pixels).latent_dist.mean, ours.encode(pixels, tiled=True).mean
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_small_image_is_not_tiled(stir: Callable[..., None]) -> None:
    _, ours = build(SMALL, stir)
    latents = draw(1, 4, 8, 8)
    with torch.inference_mode():
        assert torch.equal(ours.decode(latents, tiled=True), ours.decode(latents))


def test_tiles_of_a_local_function_have_no_seams() -> None:
    """A function that reads one pixel gives the same in tiles, whatever the overlap."""
    x = draw(1, 2, 37, 50)
    assert torch.allclose(evaluate_in_tiles(lambda part: 2 * part, x, 16, 16), 2 * x, atol=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_scaling_is_inverted(name: str) -> None:
    config = AutoencoderConfig.from_dict(PUBLISHED[name])
    encoded = draw(2, 4, 3, 3)
    torch.testing.assert_close(config.unscale(config.scale(encoded)), encoded)


def test_latents_are_shifted_and_scaled_as_in_diffusers_pipelines() -> None:
    z = torch.ones(1, 4, 1, 1)
    shifted = AutoencoderConfig.from_dict({**SMALL, "scaling_factor": 0.5, "shift_factor": 0.25})
    torch.testing.assert_close(shifted.scale(z), z * 0.375)
    normalized = AutoencoderConfig.from_dict(PUBLISHED["playground"])
    mean, std = -1.6574, 8.4927
    assert normalized.scale(z)[0, 0].item() == pytest.approx((1 - mean) * 0.5 / std)
    assert normalized.unscale(z)[0, 0].item() == pytest.approx(std / 0.5 + mean)


def test_a_sample_has_the_mean_and_the_standard_deviation() -> None:
    distribution = LatentDistribution(mean=torch.tensor([1.0]), log_variance=torch.tensor([4.0]).log())
    assert distribution.sample(torch.tensor([-1.5])).item() == pytest.approx(1 - 2 * 1.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tiling": True}, "config key 'tiling' is not understood"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "down_block_types = 'AttnDownEncoderBlock2D' is not"),
        ({"up_block_types": [UP]}, "up_block_types = ['UpDecoderBlock2D'] has 1 items, but block_out_channels says 3"),
        ({"latents_mean": [0.0]}, "latents_mean = [0.0] has 1 items, but latent_channels says 4"),
        ({"latents_mean": [0.0] * 4}, "latents_mean and latents_std are given together"),
        ({"scaling_factor": 0}, "scaling_factor = 0 is not a number from 1e-06 to 1e+06"),
        ({"norm_num_groups": 3}, "block_out_channels holds 8, not a multiple of norm_num_groups = 3"),
        ({"sample_size": None}, "sample_size = None is not a whole number"),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        AutoencoderConfig.from_dict({**SMALL, **change})
    assert message in str(refusal.value)


def test_diffusers_reads_a_written_config_as_the_same() -> None:
    for raw in CONFIGS.values():
        ours = AutoencoderConfig.from_dict(raw)
        assert AutoencoderConfig.from_dict(ours.to_dict()) == ours
        with torch.device("meta"):
            theirs = dict(AutoencoderKL.from_config(ours.to_dict()).config)
        assert all(plain(theirs[key]) == value for key, value in ours.to_dict().items())


def test_the_defaults_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        theirs = {key: value for key, value in AutoencoderKL().config.items() if not key.startswith("_")}
    assert {key: plain(value) for key, value in theirs.items()} == AutoencoderConfig().to_dict()


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
