"""The U-Net against diffusers' `UNet2DModel`: same names, same weights, same output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig
from tests.rounding import assert_rounded, terms_of

DOWN, ATTN_DOWN, RESNET_DOWN = "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"
UP, ATTN_UP, RESNET_UP = "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"
SKIP_DOWN, ATTN_SKIP_DOWN = "SkipDownBlock2D", "AttnSkipDownBlock2D"
SKIP_UP, ATTN_SKIP_UP = "SkipUpBlock2D", "AttnSkipUpBlock2D"
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
RESNETS: dict[str, Any] = {
    **TWO,
    "down_block_types": (RESNET_DOWN, ATTN_DOWN, ATTN_DOWN),
    "up_block_types": (ATTN_UP, ATTN_UP, RESNET_UP),
    "block_out_channels": (8, 16, 16),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
NCSNPP: dict[str, Any] = {
    "sample_size": 8,
    "time_embedding_type": "fourier",
    "center_input_sample": True,
    "block_out_channels": (32, 64, 64),
    "down_block_types": (SKIP_DOWN, ATTN_SKIP_DOWN, SKIP_DOWN),
    "up_block_types": (SKIP_UP, ATTN_SKIP_UP, SKIP_UP),
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "mid_block_scale_factor": 2**0.5,
    "attention_head_dim": None,
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
    "centered input": {**TWO, "center_input_sample": True},
    "wide time embedding": {**TWO, "time_embedding_dim": 24},
    "one level": {
        **TWO,
        "block_out_channels": (8,),
        "down_block_types": (ATTN_DOWN,),
        "up_block_types": (ATTN_UP,),
    },
    "not square": {**TWO, "sample_size": (8, 12)},
    "act_fn swish": {**TWO, "act_fn": "swish"},
    "act_fn mish": {**TWO, "act_fn": "mish"},
    "act_fn gelu": {**TWO, "act_fn": "gelu"},
    "act_fn relu": {**TWO, "act_fn": "relu"},
    "dropout, when not training": {**TWO, "dropout": 0.5},
    "heads that leave channels over": {**TWO, "attention_head_dim": 5},
    "no middle": {**TWO, "mid_block_type": None},
    "resampling in residual blocks": RESNETS,
    "attention blocks that resample by convolution": {**RESNETS, "downsample_type": "conv", "upsample_type": "conv"},
    "plain blocks, which ignore the resnet setting": {**TWO, "downsample_type": "resnet", "upsample_type": "resnet"},
    "scale and shift": {**TWO, "resnet_time_scale_shift": "scale_shift"},
    "scale and shift, middle with norm groups": {
        **TWO,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
    },
    "imagenet64 layout": {
        **RESNETS,
        "layers_per_block": 3,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 8,
        "num_class_embeds": 11,
    },
    "learned time": {**TWO, "time_embedding_type": "learned", "num_train_timesteps": 1000},
    "fourier time": {**TWO, "time_embedding_type": "fourier"},
    "labels that are numbers": {**TWO, "class_embed_type": "timestep"},
    "labels that are embeddings": {**TWO, "class_embed_type": "identity"},
    "ncsnpp layout": NCSNPP,
    "ncsnpp layout, no attention on the way down": {
        **NCSNPP,
        "down_block_types": (SKIP_DOWN, SKIP_DOWN, SKIP_DOWN),
        "layers_per_block": 1,
        "resnet_time_scale_shift": "scale_shift",
    },
    "skip blocks at the top only": {
        **NCSNPP,
        "norm_num_groups": 8,
        "down_block_types": (SKIP_DOWN, DOWN, ATTN_SKIP_DOWN),
        "up_block_types": (UP, ATTN_SKIP_UP, SKIP_UP),
    },
}


def levels_and_labels(config: UNetConfig) -> tuple[Tensor, Tensor | None]:
    """Four noise levels in the range of the network, and labels if it takes any."""
    t = torch.tensor([0, 1, 500, 999])
    if config.time_embedding_type == "fourier":
        t = torch.tensor([0.5, 2.0, 50.0, 1348.0])
    labels = torch.tensor([0, 3, 9, 10]) if config.num_class_embeds or config.class_embed_type else None
    if config.class_embed_type == "identity":
        width = 4 * config.block_out_channels[0]
        labels = torch.randn(4, width, generator=torch.Generator().manual_seed(2))
    return t, labels


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_weights_give_the_output_of_diffusers(name: str, stir: Callable[..., None]) -> None:
    """One forward pass, each image at its own noise level: both are equal up to the rounding of float32."""
    config = UNetConfig.from_dict(CONFIGS[name])
    theirs, ours = UNet2DModel(**CONFIGS[name]).eval(), UNet(config).eval()
    stir(theirs)
    if config.time_embedding_type == "fourier":
        theirs.time_proj.weight.data *= 80  # to their standard deviation of 16
    ours.load_state_dict(theirs.state_dict())
    side = config.sample_size
    assert side is not None
    height, width = side if isinstance(side, tuple) else (side, side)
    x = torch.randn(4, config.in_channels, height, width, generator=torch.Generator().manual_seed(1))
    t, labels = levels_and_labels(config)
    with torch.inference_mode():
        expected = theirs(x, t, class_labels=labels).sample
        found = ours(x, t, labels)
    if config.time_embedding_type == "fourier":  # compare before the division by σ, which is stricter
        expected, found = expected * t[:, None, None, None], found * t[:, None, None, None]
    assert expected.std() > 0.05, "the output of these weights is almost constant"
    terms = 2 * terms_of(ours)  # both round
    assert_rounded(found, expected, terms=terms)


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_shapes_are_those_of_diffusers(name: str) -> None:
    with torch.device("meta"):
        theirs = UNet2DModel(**CONFIGS[name]).state_dict()
        ours = UNet(UNetConfig.from_dict(CONFIGS[name])).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_diffusers_reads_a_written_config_as_the_same() -> None:
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
