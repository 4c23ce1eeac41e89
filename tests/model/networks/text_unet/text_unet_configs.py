"""Configs of published text-conditioned U-Nets, and shrunken copies of them that run in milliseconds."""

from __future__ import annotations

from typing import Any

from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig

DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"

SD_1: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD_2_BASE: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SDXL_BASE: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN],
    "up_block_types": [CROSS_UP, CROSS_UP, UP],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_REFINER: dict[str, Any] = {
    **SDXL_BASE,
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
    "up_block_types": [UP, CROSS_UP, CROSS_UP, UP],
    "transformer_layers_per_block": 4,
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
THIN: dict[str, Any] = {**SD_1, "layers_per_block": 1}

PUBLISHED: dict[str, dict[str, Any]] = {
    "sd 1": SD_1,
    "sd 1 inpainting": {**SD_1, "in_channels": 9},
    "instruct-pix2pix": {**SD_1, "in_channels": 8},
    "sd 2.1 base": SD_2_BASE,
    "sd 2.1 at 768": {**SD_2_BASE, "sample_size": 96, "upcast_attention": True},
    "sd 2 depth": {**SD_2_BASE, "in_channels": 5},
    "sd turbo": {**SD_2_BASE, "only_cross_attention": False, "mid_block_type": "UNetMidBlock2DCrossAttn"},
    "x4 upscaler": {
        "sample_size": 128,
        "in_channels": 7,
        "block_out_channels": [256, 512, 512, 1024],
        "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN],
        "up_block_types": [CROSS_UP, CROSS_UP, CROSS_UP, UP],
        "only_cross_attention": [True, True, True, False],
        "cross_attention_dim": 1024,
        "attention_head_dim": 8,
        "num_class_embeds": 1000,
        "use_linear_projection": True,
    },
    "sdxl base": SDXL_BASE,
    "sdxl refiner": SDXL_REFINER,
    "sdxl turbo": {**SDXL_BASE, "sample_size": 64, "upcast_attention": False},
    "lcm, distilled from sd 1": {**SD_1, "sample_size": 96, "time_cond_proj_dim": 256},
    "lcm, distilled from sdxl": {**SDXL_BASE, "time_cond_proj_dim": 256},
    "ssd-1b": {
        **SDXL_BASE,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "small-sd": THIN,
    "tiny-sd": {
        **THIN,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": [CROSS_DOWN] * 3,
        "mid_block_type": None,
        "up_block_types": [CROSS_UP] * 3,
    },
}

# Parameters that the publishers name.
PUBLISHED_PARAMETERS = {
    "sd 1": 859_520_964,
    "sd 2.1 base": 865_910_724,
    "sdxl base": 2_567_463_684,
    "small-sd": 579_384_964,
    "tiny-sd": 323_384_964,
}

TWO_LEVELS: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": [CROSS_DOWN, DOWN],
    "up_block_types": [UP, CROSS_UP],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}


def shrink(config: dict[str, Any]) -> dict[str, Any]:
    """The same layout with a sixteenth of the channels and at most two layers in a transformer."""
    small = {**config, "sample_size": 8, "norm_num_groups": 4}
    small["block_out_channels"] = [c // 16 for c in config.get("block_out_channels", [320, 640, 1280, 1280])]
    small["cross_attention_dim"] = config["cross_attention_dim"] // 64
    for key in ("transformer_layers_per_block", "reverse_transformer_layers_per_block"):
        if key in config:
            small[key] = _at_most_two(config[key])
    if "addition_time_embed_dim" in config:
        small["addition_time_embed_dim"] = 8
        size_ids = 6 if config["projection_class_embeddings_input_dim"] == 2816 else 5
        small["projection_class_embeddings_input_dim"] = 16 + 8 * size_ids
    if "time_cond_proj_dim" in config:
        small["time_cond_proj_dim"] = 16
    return small


def _at_most_two(layers: Any) -> Any:
    return [_at_most_two(each) for each in layers] if isinstance(layers, list) else min(layers, 2)


SMALL: dict[str, dict[str, Any]] = {
    **{f"{name}, shrunken": shrink(config) for name, config in PUBLISHED.items()},
    "two levels": TWO_LEVELS,
    "residual blocks alone": {**TWO_LEVELS, "down_block_types": [DOWN, DOWN], "up_block_types": [UP, UP]},
    "one level": {
        **TWO_LEVELS,
        "block_out_channels": [8],
        "down_block_types": [CROSS_DOWN],
        "up_block_types": [CROSS_UP],
    },
    "no middle": {**TWO_LEVELS, "mid_block_type": None},
    "middle without attention": {**TWO_LEVELS, "mid_block_type": "UNetMidBlock2D"},
    "scaled middle": {**TWO_LEVELS, "mid_block_scale_factor": 2**0.5},
    "layers that differ by level": {**TWO_LEVELS, "layers_per_block": [2, 1]},
    "text widths that differ by level": {**TWO_LEVELS, "cross_attention_dim": [12, 12]},
    "no self-attention": {**TWO_LEVELS, "only_cross_attention": True},
    "self-attention at one level": {**TWO_LEVELS, "only_cross_attention": [False, True]},
    "heads that leave channels over": {**TWO_LEVELS, "attention_head_dim": [3, 5]},
    "linear projections": {**TWO_LEVELS, "use_linear_projection": True},
    "nested transformer layers": {
        **TWO_LEVELS,
        "down_block_types": [CROSS_DOWN, CROSS_DOWN],
        "up_block_types": [CROSS_UP, CROSS_UP],
        "layers_per_block": 2,
        "transformer_layers_per_block": [[3, 2], 1],
        "reverse_transformer_layers_per_block": [[3, 1, 2], 1],
    },
    "transformer layers that differ on the way up": {
        **TWO_LEVELS,
        "transformer_layers_per_block": [2, 1],
        "reverse_transformer_layers_per_block": [1, [1, 3]],
    },
    "transformers without layers": {**TWO_LEVELS, "transformer_layers_per_block": [0, 1]},
    "classes": {**TWO_LEVELS, "num_class_embeds": 11},
    "labels that are numbers": {**TWO_LEVELS, "class_embed_type": "timestep"},
    "labels that are vectors": {
        **TWO_LEVELS,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 6,
    },
    "centred input": {**TWO_LEVELS, "center_input_sample": True},
    "sine first, shifted": {**TWO_LEVELS, "flip_sin_to_cos": False, "freq_shift": 1},
    "wide time embedding": {**TWO_LEVELS, "time_embedding_dim": 24},
    "scale and shift": {**TWO_LEVELS, "resnet_time_scale_shift": "scale_shift"},
    "padding 0": {**TWO_LEVELS, "downsample_padding": 0},
    "act_fn gelu": {**TWO_LEVELS, "act_fn": "gelu"},
    "dropout, when not training": {**TWO_LEVELS, "dropout": 0.5},
    "not square": {**TWO_LEVELS, "sample_size": [8, 12]},
}

# One level with attention and one without, for the tests of backends.
TWO_LEVEL_UNET = TextUNetConfig(
    sample_size=32,
    block_out_channels=(16, 32),
    down_block_types=(CROSS_DOWN, DOWN),
    up_block_types=(UP, CROSS_UP),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=4,
    cross_attention_dim=24,
)
