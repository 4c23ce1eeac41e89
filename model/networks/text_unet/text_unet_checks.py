"""What the values of a text-conditioned U-Net's config may be, key by key."""

from __future__ import annotations

from typing import Any

from denoised.model.networks.config_checks import (
    ValueCheck,
    is_boolean,
    is_integer,
    is_integers,
    is_number,
    is_optional_integer,
    is_positive,
)


def _is_per_level(value: Any) -> bool:
    return is_integer(value) or is_integers(value)


def _is_flag_per_level(value: Any) -> bool:
    return is_boolean(value) or (isinstance(value, tuple) and all(map(is_boolean, value)))


def _is_layer_counts(value: Any) -> bool:
    """0 layers are valid: they stand for a level without attention."""
    if not isinstance(value, tuple):
        return is_integer(value, minimum=0)
    return all(
        is_integer(item, minimum=0) or (isinstance(item, tuple) and all(is_integer(n, minimum=0) for n in item))
        for item in value
    )


TEXT_UNET_CHECKS: tuple[ValueCheck, ...] = (
    ValueCheck(("down_block_types", "up_block_types"), "not a list", lambda v: isinstance(v, tuple)),
    ValueCheck(("block_out_channels",), "not a list of whole numbers", is_integers),
    ValueCheck(("in_channels", "out_channels", "norm_num_groups"), "not a whole number from 1", is_integer),
    ValueCheck(
        ("layers_per_block", "cross_attention_dim", "attention_head_dim"),
        "neither a whole number from 1 nor a list of them",
        _is_per_level,
    ),
    ValueCheck(
        ("num_attention_heads",),
        "neither null, nor a whole number from 1, nor a list of them",
        lambda v: v is None or _is_per_level(v),
    ),
    ValueCheck(("only_cross_attention",), "neither true, nor false, nor a list of them", _is_flag_per_level),
    ValueCheck(
        ("transformer_layers_per_block",), "neither a whole number nor a list of whole numbers", _is_layer_counts
    ),
    ValueCheck(
        ("reverse_transformer_layers_per_block",),
        "neither null nor a list of whole numbers",
        lambda v: v is None or (isinstance(v, tuple) and _is_layer_counts(v)),
    ),
    ValueCheck(
        (
            "addition_time_embed_dim",
            "num_class_embeds",
            "time_embedding_dim",
            "time_cond_proj_dim",
            "projection_class_embeddings_input_dim",
        ),
        "neither a whole number from 1 nor null",
        is_optional_integer,
    ),
    ValueCheck(("mid_block_scale_factor", "norm_eps"), "not a number over 0", is_positive),
    ValueCheck(("freq_shift",), "not a number", is_number),
    ValueCheck(("dropout",), "outside 0 … 1", lambda v: is_number(v) and 0 <= v <= 1),
    ValueCheck(
        ("center_input_sample", "flip_sin_to_cos", "use_linear_projection", "upcast_attention"),
        "neither true nor false",
        is_boolean,
    ),
    # 1 and 1.0 are equal here.
    ValueCheck(("resnet_out_scale_factor",), "not supported (supported: 1.0)", lambda v: is_number(v) and v == 1),
)

# Keys for which only some values are implemented, with those values.
SUPPORTED_TEXT_UNET_VALUES: dict[str, tuple[Any, ...]] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish", "mish", "gelu", "relu"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "projection"),
    "addition_embed_type": (None, "text_time"),
    # Of Kandinsky, DeepFloyd IF and GLIGEN.
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "dual_cross_attention": (False,),
    "resnet_skip_time_act": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
    "addition_embed_type_num_heads": (64,),
}
