"""What the config of a text-conditioned U-Net accepts, and what it refuses by name."""

from __future__ import annotations

from typing import Any

import pytest

from denoised.model.errors import CheckpointError
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from tests.model.networks.text_unet.text_unet_configs import PUBLISHED, TWO_LEVELS

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"gated": True}, "config key 'gated' is not understood"),
    "block of another family": (
        {"down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]},
        "down_block_types = 'SimpleCrossAttnDownBlock2D' is not supported",
    ),
    "middle of another family": (
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
        "mid_block_type = 'UNetMidBlock2DSimpleCrossAttn' is not supported",
    ),
    "text projection": ({"encoder_hid_dim": 4096}, "encoder_hid_dim = 4096 is not supported"),
    "image embedding": ({"addition_embed_type": "image"}, "addition_embed_type = 'image' is not supported"),
    "label embedding": ({"class_embed_type": "identity"}, "class_embed_type = 'identity' is not supported"),
    "grounding": ({"attention_type": "gated"}, "attention_type = 'gated' is not supported"),
    "kernel": ({"conv_in_kernel": 1}, "conv_in_kernel = 1 is not supported (supported: 3)"),
    "no norm": ({"norm_num_groups": None}, "norm_num_groups = None is not a whole number from 1"),
    "groups": ({"norm_num_groups": 3}, "block_out_channels holds 8, not a multiple of norm_num_groups = 3"),
    "lengths": ({"block_out_channels": [8]}, "down_block_types = ['CrossAttnDownBlock2D', 'DownBlock2D'] has 2 items"),
    "heads for each level": ({"attention_head_dim": [2, 2, 2]}, "attention_head_dim = [2, 2, 2] has 3 items"),
    "too many heads": ({"attention_head_dim": 9}, "attention_head_dim holds 9 heads, over the 8 channels"),
    "no heads": ({"attention_head_dim": 0}, "attention_head_dim = 0 is neither"),
    "a number that is true": ({"in_channels": True}, "in_channels = True is not a whole number"),
    "a flag that is a number": ({"upcast_attention": 1}, "upcast_attention = 1 is neither true nor false"),
    "a scale of another family": ({"resnet_out_scale_factor": 2}, "resnet_out_scale_factor = 2 is not supported"),
    "layers in one direction only": (
        {"transformer_layers_per_block": [[1], 1]},
        "reverse_transformer_layers_per_block = None, but transformer_layers_per_block holds lists",
    ),
    "too few layers": (
        {"transformer_layers_per_block": [[1], 1], "reverse_transformer_layers_per_block": [1, [1]]},
        "reverse_transformer_layers_per_block holds [1], under the 2 attentions of a block",
    ),
    "no width of the added vector": (
        {"addition_embed_type": "text_time", "addition_time_embed_dim": 8},
        "projection_class_embeddings_input_dim = None, but addition_embed_type = 'text_time'",
    ),
    "no width of a size id": (
        {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 64},
        "addition_time_embed_dim = None",
    ),
    "no width of a label": (
        {"class_embed_type": "projection"},
        "projection_class_embeddings_input_dim = None, but class_embed_type = 'projection'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_is_not_understood_is_refused_by_name(name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(CheckpointError) as refusal:
        TextUNetConfig.from_dict({**TWO_LEVELS, **change})
    assert message in str(refusal.value)


def test_keys_that_begin_with_an_underscore_are_left_out() -> None:
    raw = {**TWO_LEVELS, "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0"}
    assert TextUNetConfig.from_dict(raw) == TextUNetConfig.from_dict(TWO_LEVELS)


def test_the_number_of_heads_has_two_names() -> None:
    """attention_head_dim means the number of heads; num_attention_heads has precedence."""
    raw = {**TWO_LEVELS, "attention_head_dim": 8, "num_attention_heads": [2, 4]}
    config = TextUNetConfig.from_dict(raw)
    assert [config.transformer(level).heads for level in range(2)] == [2, 4]


def test_transformer_layers_of_both_directions() -> None:
    config = TextUNetConfig.from_dict(PUBLISHED["ssd-1b"])
    assert [config.transformer_layers(level) for level in range(3)] == [(1, 1), (2, 2), (4, 4)]
    assert [config.up_transformer_layers(level) for level in range(3)] == [(1, 1, 1), (2, 1, 1), (4, 4, 10)]
    base = TextUNetConfig.from_dict(PUBLISHED["sdxl base"])
    assert [base.up_transformer_layers(level) for level in range(3)] == [(1, 1, 1), (2, 2, 2), (10, 10, 10)]
    assert base.mid_transformer_layers() == 10


def test_height_and_width_are_multiples_of_the_downscale() -> None:
    assert TextUNetConfig.from_dict(PUBLISHED["sd 1"]).downscale == 8
    assert TextUNetConfig.from_dict(PUBLISHED["sdxl base"]).downscale == 4
