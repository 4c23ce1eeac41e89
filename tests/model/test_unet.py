"""The U-Net by itself: mixed batches, time features, and configs that are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.blocks import sinusoid
from model.config import UNetConfig
from model.errors import CheckpointError
from model.unet import UNet


def test_a_batch_of_mixed_noise_levels_equals_separate_evaluations(
    conditional: UNetConfig, stir: Callable[..., None]
) -> None:
    """Kernels may differ by batch size, hence a tolerance here; the worker's promise is of bits."""
    net = UNet(conditional).eval()
    stir(net)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([999.0, 0.0, 500.0, 1.0, 37.0])
    labels = torch.tensor([0, 1, 2, 3, 0])
    with torch.inference_mode():
        whole = net(x, t, labels)
        alone = torch.cat([net(x[k : k + 1], t[k : k + 1], labels[k : k + 1]) for k in range(5)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-5)


def test_noise_level_and_label_are_heard(conditional: UNetConfig, stir: Callable[..., None]) -> None:
    net = UNet(conditional).eval()
    stir(net)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
    with torch.inference_mode():
        out = net(x, torch.tensor([10.0, 900.0, 10.0]), torch.tensor([0, 0, 3]))
    assert (out[0] - out[1]).abs().max() > 1e-2
    assert (out[0] - out[2]).abs().max() > 1e-2


def test_a_label_beyond_the_null_class_is_an_error(conditional: UNetConfig) -> None:
    """SCIENCE trap 24: K is null, K + 1 and −1 are errors."""
    net = UNet(conditional)
    for label in (4, -1):
        with pytest.raises(IndexError):
            net(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.tensor([label]))


def test_the_two_conventions_of_time_features_at_zero() -> None:
    """SCIENCE trap 25: t = 0 → the first half is 0 in Ho's order (sin‖cos), 1 in OpenAI's (cos‖sin)."""
    zero = torch.zeros(1)
    ho = sinusoid(zero, 8, flip_sin_to_cos=False, freq_shift=1)
    openai = sinusoid(zero, 8, flip_sin_to_cos=True, freq_shift=0)
    assert ho.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert openai.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]


def test_time_features_divide_by_half_less_the_shift() -> None:
    """SCIENCE trap 25: frequencies exp(−ln 10000·i/(half − shift)); with shift 1 the last is 1/10000."""
    t = torch.tensor([500.0])
    shifted = sinusoid(t, 8, flip_sin_to_cos=False, freq_shift=1)[0]
    plain = sinusoid(t, 8, flip_sin_to_cos=True, freq_shift=0)[0]
    assert shifted[3].item() == pytest.approx(math.sin(500 / 10_000), abs=1e-6)
    assert plain[7].item() == pytest.approx(math.sin(500 / 10_000**0.75), abs=1e-6)
    assert plain[3].item() == pytest.approx(math.cos(500 / 10_000**0.75), abs=1e-6)


def test_time_features_are_defined_between_timesteps() -> None:
    low, middle, high = sinusoid(torch.tensor([749.0, 749.25, 750.0]), 16, flip_sin_to_cos=True, freq_shift=0)
    assert not torch.equal(low, middle)
    assert not torch.equal(middle, high)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("time_embedding_type", "fourier"),
        ("mid_block_type", None),
        ("downsample_type", "resnet"),
        ("upsample_type", "resnet"),
        ("act_fn", "mish"),
        ("resnet_time_scale_shift", "scale_shift"),
        ("class_embed_type", "timestep"),
        ("norm_num_groups", None),
    ],
)
def test_a_value_that_is_not_supported_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"^{key} = {value!r} is not supported") as caught:
        UNetConfig.from_dict({key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "block"),
    [("down_block_types", "SkipDownBlock2D"), ("up_block_types", "ResnetUpsampleBlock2D")],
)
def test_a_block_that_is_not_supported_is_refused_by_name(key: str, block: str) -> None:
    blocks = list(getattr(UNetConfig(), key))
    with pytest.raises(CheckpointError, match=f"^{key} = '{block}' is not supported"):
        UNetConfig.from_dict({key: [*blocks[1:], block]})


def test_a_key_that_is_not_understood_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="config key 'encoder_hid_dim' is not understood"):
        UNetConfig.from_dict({"encoder_hid_dim": 768})


def test_the_keys_that_diffusers_adds_for_itself_are_passed_over() -> None:
    raw = {"_class_name": "UNet2DModel", "_diffusers_version": "0.42.1", "_name_or_path": "google/ddpm-cifar10-32"}
    assert UNetConfig.from_dict(raw) == UNetConfig()


def test_block_lists_of_different_length_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"differ in length \(3, 4, 4\)"):
        UNetConfig.from_dict({"block_out_channels": [32, 64, 64]})


def test_channels_that_the_norm_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(CheckpointError, match="block_out_channels holds 48, no multiple of norm_num_groups = 32"):
        UNetConfig.from_dict({"block_out_channels": [32, 48, 64, 64]})


def test_a_network_shrinks_pictures_by_two_for_each_level_but_one(unconditional: UNetConfig) -> None:
    assert unconditional.downscale == 2
    assert UNetConfig().downscale == 8
