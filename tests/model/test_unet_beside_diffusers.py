"""The U-Net against diffusers' `UNet2DModel`: same names, same weights, same output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from model.config import UNetConfig
from model.unet import UNet

DOWN, ATTN_DOWN, UP, ATTN_UP = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"
TWO: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": (DOWN, ATTN_DOWN),
    "up_block_types": (ATTN_UP, UP),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
GOOGLE: dict[str, Any] = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "two levels": TWO,
    "two layers": {**TWO, "layers_per_block": 2},
    "three layers, every level attends": {
        **TWO,
        "layers_per_block": 3,
        "down_block_types": (ATTN_DOWN, ATTN_DOWN),
        "up_block_types": (ATTN_UP, ATTN_UP),
    },
    "classes": {**TWO, "num_class_embeds": 11, "in_channels": 1, "out_channels": 1},
    "one head": {**TWO, "attention_head_dim": None},
    "heads of four channels": {**TWO, "attention_head_dim": 4},
    "google settings": {**TWO, **GOOGLE},
    "padding 0": {**TWO, "downsample_padding": 0},
    "sine first": {**TWO, "flip_sin_to_cos": False},
    "frequency shift": {**TWO, "freq_shift": 1},
    "cifar10 layout": {
        **GOOGLE,
        "sample_size": 16,
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": (DOWN, ATTN_DOWN, DOWN, DOWN),
        "up_block_types": (UP, UP, ATTN_UP, UP),
        "norm_num_groups": 8,
    },
    "diffusers' default layout": {
        "sample_size": 16,
        "block_out_channels": (8, 16, 24, 32),
        "norm_num_groups": 4,
    },
    "butterflies layout": {
        "sample_size": 16,
        "block_out_channels": (8, 16, 16, 32),
        "down_block_types": (DOWN, DOWN, ATTN_DOWN, ATTN_DOWN),
        "up_block_types": (ATTN_UP, ATTN_UP, UP, UP),
        "norm_num_groups": 8,
    },
    "scaled middle": {**TWO, "mid_block_scale_factor": 2**0.5},
    "middle without attention": {**TWO, "add_attention": False},
    "middle with other norm groups": {**TWO, "attn_norm_num_groups": 2},
    "centred input": {**TWO, "center_input_sample": True},
    "wide time embedding": {**TWO, "time_embedding_dim": 24},
    "one level": {
        **TWO,
        "block_out_channels": (8,),
        "down_block_types": (ATTN_DOWN,),
        "up_block_types": (ATTN_UP,),
    },
    "not square": {**TWO, "sample_size": (8, 12)},
    "act_fn swish": {**TWO, "act_fn": "swish"},
    "dropout, when not training": {**TWO, "dropout": 0.5},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_weights_give_the_output_of_diffusers(name: str, stir: Callable[..., None]) -> None:
    """SCIENCE (d): one forward pass equal to 1e-5 in float32, each image at its own noise level."""
    raw = CONFIGS[name]
    theirs = UNet2DModel(**raw).eval()
    ours = UNet(UNetConfig.from_dict(raw)).eval()
    stir(theirs)
    ours.load_state_dict(theirs.state_dict())
    side = raw["sample_size"]
    height, width = side if isinstance(side, tuple) else (side, side)
    x = torch.randn(4, raw.get("in_channels", 3), height, width, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 1, 500, 999])
    labels = torch.tensor([0, 3, 9, 10]) if "num_class_embeds" in raw else None
    with torch.inference_mode():
        expected = theirs(x, t, class_labels=labels).sample
        found = ours(x, t, labels)
    assert expected.std() > 0.05, "the weights of this test say nothing"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_shapes_are_those_of_diffusers(name: str) -> None:
    with torch.device("meta"):
        theirs = UNet2DModel(**CONFIGS[name]).state_dict()
        ours = UNet(UNetConfig.from_dict(CONFIGS[name])).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_a_written_config_is_one_that_diffusers_reads_as_the_same() -> None:
    for raw in CONFIGS.values():
        ours = UNetConfig.from_dict(raw)
        again = UNetConfig.from_dict(ours.to_dict())
        assert again == ours
        with torch.device("meta"):
            theirs = dict(UNet2DModel.from_config(ours.to_dict()).config)
        assert all(_same(theirs[key], value) for key, value in raw.items())


def test_the_defaults_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        theirs = dict(UNet2DModel().config)
    ours = UNetConfig().to_dict()
    unknown_to_us = {key for key in theirs.keys() - ours.keys() if not key.startswith("_")}
    assert unknown_to_us == set()
    assert all(_same(theirs[key], value) for key, value in ours.items())


def _same(theirs: object, ours: object) -> bool:
    def plain(value: object) -> object:
        return list(value) if isinstance(value, tuple) else value

    return plain(theirs) == plain(ours)


@pytest.mark.parametrize(
    ("channels", "down", "up", "extra", "tensors", "parameters"),
    [
        ((128, 256, 256, 256), "DADD", "DDAD", {**GOOGLE}, 328, 35_746_307),
        ((128, 128, 256, 256, 512, 512), "DDDDAD", "DADDDD", {**GOOGLE}, 450, 113_673_219),
        ((64, 128, 128, 256), "DDAA", "AADD", {}, 380, 18_536_323),
    ],
    ids=["google/ddpm-cifar10-32", "google/ddpm-*-256", "butterflies-32px"],
)
def test_known_checkpoints_have_their_number_of_tensors_and_parameters(
    channels: tuple[int, ...], down: str, up: str, extra: dict[str, Any], tensors: int, parameters: int
) -> None:
    """SCIENCE (d), "Checkpoints covered"."""
    config = UNetConfig.from_dict(
        {
            "block_out_channels": channels,
            "down_block_types": tuple(ATTN_DOWN if kind == "A" else DOWN for kind in down),
            "up_block_types": tuple(ATTN_UP if kind == "A" else UP for kind in up),
            **extra,
        }
    )
    with torch.device("meta"):
        net = UNet(config)
    assert len(net.state_dict()) == tensors
    assert sum(weight.numel() for weight in net.parameters()) == parameters
