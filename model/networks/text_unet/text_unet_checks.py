"""What the values of a text-conditioned U-Net's config may be, key by key."""

from __future__ import annotations

from typing import Any

from denoised.model.networks.config_checks import (
    MAX_COUNT,
    MAX_LAYERS,
    MAX_LEVELS,
    MAX_ROWS,
    ValueCheck,
    is_boolean,
    is_integer,
    is_integers,
    is_level_list,
    is_number,
    is_optional_integer,
    is_positive,
)

MAX_TRANSFORMER_LAYERS = 32  # of one attention; SDXL has 10
MAX_ATTENTIONS = MAX_LAYERS + 1  # of one level, on the way up


def _is_size(value: Any) -> bool:
    """Whether a value is null, one side, or a list of height and width."""
    return value is None or is_integer(value) or (is_integers(value) and len(value) == 2)


def _is_residual_blocks(value: Any) -> bool:
    return all(is_integer(item, most=MAX_LAYERS) for item in (value if is_integers(value) else (value,)))


def _is_per_level(value: Any) -> bool:
    return is_integer(value) or is_integers(value)


def _is_flag_per_level(value: Any) -> bool:
    return is_boolean(value) or (is_level_list(value) and all(map(is_boolean, value)))


def _is_layer_count(value: Any) -> bool:
    """0 layers are valid: they stand for a level without attention."""
    return is_integer(value, minimum=0, most=MAX_TRANSFORMER_LAYERS)


def _is_layer_counts(value: Any) -> bool:
    """Whether a value is a count, or a list of an item for each level: a count, or a list of one for each attention."""
    return _is_layer_count(value) or (
        is_level_list(value)
        and all(
            _is_layer_count(item)
            or (isinstance(item, tuple) and len(item) <= MAX_ATTENTIONS and all(map(_is_layer_count, item)))
            for item in value
        )
    )


TEXT_UNET_CHECKS: tuple[ValueCheck, ...] = (
    ValueCheck(("sample_size",), f"neither null, nor a whole number from 1 to {MAX_COUNT}, nor two of them", _is_size),
    ValueCheck(("down_block_types", "up_block_types"), f"not a list of at most {MAX_LEVELS}", is_level_list),
    ValueCheck(
        ("block_out_channels",),
        f"not a list of whole numbers from 1 to {MAX_COUNT}, at most {MAX_LEVELS} of them",
        is_integers,
    ),
    ValueCheck(
        ("in_channels", "out_channels", "norm_num_groups"), f"not a whole number from 1 to {MAX_COUNT}", is_integer
    ),
    ValueCheck(
        ("layers_per_block",),
        f"neither a whole number from 1 to {MAX_LAYERS} nor a list of them",
        _is_residual_blocks,
    ),
    ValueCheck(
        ("cross_attention_dim", "attention_head_dim"),
        f"neither a whole number from 1 to {MAX_COUNT} nor a list of them",
        _is_per_level,
    ),
    ValueCheck(
        ("num_attention_heads",),
        f"neither null, nor a whole number from 1 to {MAX_COUNT}, nor a list of them",
        lambda v: v is None or _is_per_level(v),
    ),
    ValueCheck(("only_cross_attention",), "neither true, nor false, nor a list of them", _is_flag_per_level),
    ValueCheck(
        ("transformer_layers_per_block",),
        f"neither a whole number up to {MAX_TRANSFORMER_LAYERS} nor a list of them",
        _is_layer_counts,
    ),
    ValueCheck(
        ("reverse_transformer_layers_per_block",),
        f"neither null nor a list of whole numbers up to {MAX_TRANSFORMER_LAYERS}",
        lambda v: v is None or (isinstance(v, tuple) and _is_layer_counts(v)),
    ),
    ValueCheck(
        (
            "addition_time_embed_dim",
            "time_embedding_dim",
            "time_cond_proj_dim",
            "projection_class_embeddings_input_dim",
        ),
        f"neither a whole number from 1 to {MAX_COUNT} nor null",
        is_optional_integer,
    ),
    ValueCheck(
        ("num_class_embeds",),
        f"neither a whole number from 1 to {MAX_ROWS} nor null",
        lambda v: v is None or is_integer(v, most=MAX_ROWS),
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
