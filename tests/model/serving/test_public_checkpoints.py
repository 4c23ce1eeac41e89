"""The U-Nets of public checkpoints at their full size, without weights: tensors, shapes, parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig

BLOCKS = {
    "D": ("DownBlock2D", "UpBlock2D"),
    "A": ("AttnDownBlock2D", "AttnUpBlock2D"),
    "R": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
    "S": ("SkipDownBlock2D", "SkipUpBlock2D"),
    "K": ("AttnSkipDownBlock2D", "AttnSkipUpBlock2D"),
}


def config(channels: tuple[int, ...], down: str, **rest: Any) -> dict[str, Any]:
    """A config from the letters of its blocks on the way down; the way up is their mirror image."""
    return {
        "block_out_channels": channels,
        "down_block_types": tuple(BLOCKS[letter][0] for letter in down),
        "up_block_types": tuple(BLOCKS[letter][1] for letter in reversed(down)),
        **rest,
    }


HO = {"attention_head_dim": None, "downsample_padding": 0, "norm_eps": 1e-6, "flip_sin_to_cos": False, "freq_shift": 1}
NCSNPP = {
    "time_embedding_type": "fourier",
    "center_input_sample": True,
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "mid_block_scale_factor": math.sqrt(2),
    "attention_head_dim": None,
}
CONSISTENCY = {"attention_head_dim": 64, "downsample_type": "resnet", "upsample_type": "resnet"}
SIX = (128, 128, 256, 256, 512, 512)
# Their configs as published; (tensors, parameters) where known: counted on diffusers 0.42.1's own network.
PUBLIC: dict[str, tuple[dict[str, Any], tuple[int, int] | None]] = {
    "google/ddpm-cifar10-32": (config((128, 256, 256, 256), "DADD", **HO), (328, 35_746_307)),
    "google/ddpm-celebahq-256": (config(SIX, "DDDDAD", **HO), (450, 113_673_219)),
    "diffusers' train_unconditional.py": (config(SIX, "DDDDAD"), (450, 113_673_219)),
    "sd-class-butterflies-32": (config((64, 128, 128, 256), "DDAA"), (380, 18_536_323)),
    "google/ncsnpp-celebahq-256": (config((128, 128, *(256,) * 5), "SSSSKSS", **NCSNPP), (645, 65_574_549)),
    "google/ncsnpp-ffhq-1024": (
        config((16, 32, 64, 128, 256, 512, 512, 512), "SSSSSSKS", layers_per_block=1, **NCSNPP),
        None,
    ),
    "openai/diffusers-cd_imagenet64": (
        config(
            (192, 384, 576, 768),
            "RAAA",
            layers_per_block=3,
            resnet_time_scale_shift="scale_shift",
            attn_norm_num_groups=32,
            num_class_embeds=1000,
            **CONSISTENCY,
        ),
        (629, 295_899_267),
    ),
    "openai/diffusers-cd_bedroom256": (config((256, 256, 512, 512, 1024, 1024), "RRRAAA", **CONSISTENCY), None),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_checkpoint_has_its_tensors_and_parameters(name: str) -> None:
    raw, counts = PUBLIC[name]
    with torch.device("meta"):
        ours, theirs = UNet(UNetConfig.from_dict(raw)), UNet2DModel(**raw)
    found = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    assert found == {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert sum(weight.numel() for weight in ours.parameters()) == theirs.num_parameters()
    if counts is not None:
        assert (len(found), sum(weight.numel() for weight in ours.parameters())) == counts
