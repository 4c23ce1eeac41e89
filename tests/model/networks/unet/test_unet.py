"""The U-Net by itself: mixed batches, labels, and configs that are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from denoised.model.errors import CheckpointError
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig
from tests.rounding import assert_rounded, terms_of


def test_a_batch_of_mixed_noise_levels_equals_separate_evaluations(
    conditional: UNetConfig, stir: Callable[..., None]
) -> None:
    """Within a tolerance, since torch's kernels may differ by batch size; only the backends promise equal bits."""
    net = UNet(conditional).eval()
    stir(net)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([999.0, 0.0, 500.0, 1.0, 37.0])
    labels = torch.tensor([0, 1, 2, 3, 0])
    with torch.inference_mode():
        whole = net(x, t, labels)
        alone = torch.cat([net(x[k : k + 1], t[k : k + 1], labels[k : k + 1]) for k in range(5)])
    assert_rounded(whole, alone, terms=2 * terms_of(net))


def test_a_network_on_the_meta_device_draws_no_embedding(
    conditional: UNetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`normal_` of a meta tensor imports torch's compiler, which took each start of a worker 1.4 s."""

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("torch.nn.init.normal_", refuse)
    with torch.device("meta"):
        assert all(weight.is_meta for weight in UNet(conditional).parameters())
    with pytest.raises(AssertionError):
        UNet(conditional)


def test_the_output_depends_on_noise_level_and_label(conditional: UNetConfig, stir: Callable[..., None]) -> None:
    net = UNet(conditional).eval()
    stir(net)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
    with torch.inference_mode():
        out = net(x, torch.tensor([10.0, 900.0, 10.0]), torch.tensor([0, 0, 3]))
    assert (out[0] - out[1]).abs().max() > 1e-2
    assert (out[0] - out[2]).abs().max() > 1e-2


def test_a_label_beyond_the_null_class_is_an_error(conditional: UNetConfig) -> None:
    """Of K + 1 rows the last is "no label"; K + 1 and −1 are errors."""
    net = UNet(conditional)
    for label in (4, -1):
        with pytest.raises(IndexError):
            net(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.tensor([label]))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("time_embedding_type", "gaussian"),
        ("mid_block_type", "UNetMidBlock2DCrossAttn"),
        ("downsample_type", "fir"),
        ("upsample_type", None),
        ("act_fn", "elu"),
        ("resnet_time_scale_shift", "spatial"),
        ("class_embed_type", "projection"),
        ("downsample_padding", 2),
    ],
)
def test_a_value_that_is_not_supported_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"^{key} = {value!r} is not supported") as caught:
        UNetConfig.from_dict({key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "block"),
    [("down_block_types", "CrossAttnDownBlock2D"), ("up_block_types", "KUpBlock2D"), ("up_block_types", "DownBlock2D")],
)
def test_a_block_that_is_not_supported_is_refused_by_name(key: str, block: str) -> None:
    blocks = list(getattr(UNetConfig(), key))
    with pytest.raises(CheckpointError, match=f"^{key} = '{block}' is not supported"):
        UNetConfig.from_dict({key: [*blocks[1:], block]})


SKIPS = {
    "block_out_channels": [32, 32],
    "down_block_types": ["SkipDownBlock2D"] * 2,
    "up_block_types": ["SkipUpBlock2D"] * 2,
}


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"norm_num_groups": None}, "norm_num_groups = None is not supported with 'DownBlock2D'"),
        ({"time_embedding_type": "learned"}, "num_train_timesteps = None, but time_embedding_type = 'learned'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps = 0 is neither a whole number from 1 to 100000 nor null"),
        ({"block_out_channels": []}, "block_out_channels = () is not a list of whole numbers"),
        ({"attn_norm_num_groups": 10}, "attn_norm_num_groups = 10 does not divide 896"),
        ({**SKIPS, "in_channels": 1, "out_channels": 1}, "in_channels = 1 is not supported with Skip blocks"),
        (
            {
                **SKIPS,
                "block_out_channels": [32] * 3,
                "down_block_types": ["DownBlock2D", "SkipDownBlock2D", "SkipDownBlock2D"],
                "up_block_types": ["SkipUpBlock2D"] * 3,
            },
            "down_block_types has a Skip block after a block of another kind",
        ),
        (
            {**SKIPS, "up_block_types": ["SkipUpBlock2D", "UpBlock2D"]},
            "up_block_types has a Skip block before a block of another kind",
        ),
    ],
)
def test_invalid_and_contradictory_values_are_refused_by_name(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(cause)}"):
        UNetConfig.from_dict(changes)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (
            {**SKIPS, "block_out_channels": [32, 48], "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"]},
            "block_out_channels leads to a norm of 32 groups over 48 channels",
        ),
        ({**SKIPS, "block_out_channels": [2, 32]}, "block_out_channels leads to a norm of 0 groups over 2 channels"),
        ({"attention_head_dim": 512}, "attention_head_dim = 512 is over the 448 channels of a block"),
    ],
)
def test_blocks_that_cannot_be_built_are_refused_by_name(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(cause)}$"), torch.device("meta"):
        UNet(UNetConfig.from_dict(changes))


def test_a_key_that_is_not_understood_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="config key 'encoder_hid_dim' is not understood"):
        UNetConfig.from_dict({"encoder_hid_dim": 768})


def test_the_keys_that_diffusers_adds_for_itself_are_ignored() -> None:
    raw = {"_class_name": "UNet2DModel", "_diffusers_version": "0.42.1", "_name_or_path": "google/ddpm-cifar10-32"}
    assert UNetConfig.from_dict(raw) == UNetConfig()


def test_block_lists_of_different_length_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"differ in length \(3, 4, 4\)"):
        UNetConfig.from_dict({"block_out_channels": [32, 64, 64]})


def test_channels_that_the_norm_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(CheckpointError, match="block_out_channels holds 48, not a multiple of norm_num_groups = 32"):
        UNetConfig.from_dict({"block_out_channels": [32, 48, 64, 64]})


def test_height_and_width_are_halved_at_each_level_but_the_last(unconditional: UNetConfig) -> None:
    assert unconditional.downscale == 2
    assert UNetConfig().downscale == 8
