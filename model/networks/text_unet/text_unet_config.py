"""The settings of a text-conditioned U-Net: the keys of `config.json`, checked.

Keys and defaults equal those of diffusers 0.42's `UNet2DConditionModel`. A config that asks for something
`model.networks.text_unet.text_unet` does not implement is refused by name; no key is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.config_checks import check_values, known_values, to_lists
from denoised.model.networks.text_unet.text_unet_checks import SUPPORTED_TEXT_UNET_VALUES, TEXT_UNET_CHECKS
from denoised.model.networks.text_unet.transformer_config import TransformerConfig
from denoised.model.networks.unet.unet_config import UNetConfig

# One value for all levels, or one for each level, the highest resolution first.
PerLevel = int | tuple[int, ...]
# Transformer layers: of all attentions, of the attentions of each level, or of each attention of each level.
LayerCounts = int | tuple[int | tuple[int, ...], ...]

MAX_LAYERS_IN_ALL = 500  # of transformers; SDXL has 60, in the way down and the way up
SIZE_IDS = 6  # of SDXL: height and width of the original, top and left of the crop, height and width of the target

# Keys whose lists have one item for each level.
PER_LEVEL_KEYS = (
    "down_block_types",
    "up_block_types",
    "only_cross_attention",
    "layers_per_block",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "attention_head_dim",
    "num_attention_heads",
)


@dataclass(frozen=True)
class TextUNetConfig:
    """The keys of `config.json`, with diffusers' defaults for those left out.

    Attributes:
        sample_size: latent pixels along each side, or (height, width).
        in_channels: 4 latent channels, and the channels that some checkpoints append: 5 (depth), 7 (upscaling),
            8 (instructions), 9 (inpainting).
        out_channels: of the output.
        center_input_sample: evaluate the network at 2·x − 1.
        flip_sin_to_cos, freq_shift: conventions of the sinusoids, see `sinusoidal_features`.
        down_block_types: one block for each level, the highest resolution first.
        mid_block_type: "UNetMidBlock2DCrossAttn", "UNetMidBlock2D" (one residual block) or null.
        up_block_types: one block for each level, the lowest resolution first.
        only_cross_attention: whether self-attention is replaced by attention to the text, for each level; the middle
            block always has self-attention.
        block_out_channels: channels of each level; each level but the last halves height and width.
        layers_per_block: residual blocks in a down block, for each level; up blocks have one more.
        downsample_padding: 1 pads all around, 0 pads one row and one column at the end.
        mid_block_scale_factor: divides the sums of the middle block's residual blocks.
        dropout: probability in the residual blocks, in training only.
        act_fn: activation of the residual blocks and of the time embedding.
        norm_num_groups, norm_eps: of the group norms.
        cross_attention_dim: channels of the text's hidden states, for each level.
        transformer_layers_per_block: layers of the attentions of each level, or of each attention of each level.
        reverse_transformer_layers_per_block: the same for the way up, the lowest resolution first; null means the
            reverse of the way down.
        attention_head_dim: the number of heads, for each level. diffusers' name for it is historical.
        num_attention_heads: the number of heads, for each level, under its right name; null means attention_head_dim.
        use_linear_projection: project by linear layers instead of 1×1 convolutions.
        class_embed_type: null (a table of num_class_embeds rows, if any), "timestep" (a number) or "projection"
            (a vector of projection_class_embeddings_input_dim channels).
        addition_embed_type: null, or "text_time" for SDXL's pooled text and size ids.
        addition_time_embed_dim: features of each size id.
        num_class_embeds: classes or noise levels.
        upcast_attention: compute attention in float32.
        resnet_time_scale_shift: "default" adds the embedding, "scale_shift" scales and shifts the norm by it.
        time_embedding_dim: width of the embedding; null means 4·block_out_channels[0].
        time_cond_proj_dim: features of the guidance scale, for distilled checkpoints (LCM).
        projection_class_embeddings_input_dim: channels of the added vector before its projection.

    `text_unet_checks` has the keys for which a single value is supported.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: PerLevel = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: PerLevel = 1280
    transformer_layers_per_block: LayerCounts = 1
    reverse_transformer_layers_per_block: LayerCounts | None = None
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    attention_head_dim: PerLevel = 8
    num_attention_heads: PerLevel | None = None
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    num_class_embeds: int | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    time_embedding_act_fn: None = None
    timestep_post_act: None = None
    time_cond_proj_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: int | None = None
    attention_type: str = "default"
    class_embeddings_concat: bool = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: None = None
    addition_embed_type_num_heads: int = 64

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TextUNetConfig:
        """The config of a parsed `config.json`; keys that begin with an underscore are left out.

        Raises:
            CheckpointError: for a key or a value that is not understood, by name.
        """
        config = cls(**known_values(cls, raw))
        check_values(config, TEXT_UNET_CHECKS, SUPPORTED_TEXT_UNET_VALUES)
        config._check_levels()
        config._check_embeddings()
        return config

    def to_dict(self) -> dict[str, Any]:
        """Every key, as `config.json` holds it."""
        return {field.name: to_lists(getattr(self, field.name)) for field in fields(self)}

    @property
    def levels(self) -> int:
        """The number of resolutions."""
        return len(self.block_out_channels)

    @property
    def embed_dim(self) -> int:
        """Width of the embedding that every block receives."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def downscale(self) -> int:
        """The number that height and width must be multiples of: 2^(levels − 1)."""
        return int(2 ** (self.levels - 1))

    @property
    def added_inputs(self) -> tuple[str, ...]:
        """The inputs of the network besides latents, timestep and text, as `TextUNet.forward` names them."""
        sizes = ("pooled", "size_ids") if self.addition_embed_type == "text_time" else ()
        return (*sizes, "guidance") if self.time_cond_proj_dim is not None else sizes

    @property
    def pooled_dim(self) -> int:
        """Channels of the pooled text, for `text_time`: of the added vector, without the size ids."""
        return (self.projection_class_embeddings_input_dim or 0) - SIZE_IDS * (self.addition_time_embed_dim or 0)

    def layers(self, level: int) -> int:
        """Residual blocks of the down block of a level."""
        return _at(self.layers_per_block, level)

    def transformer_layers(self, level: int) -> tuple[int, ...]:
        """Layers of each attention of the down block of a level."""
        return _counts(_at(self.transformer_layers_per_block, level), self.layers(level))

    def mid_transformer_layers(self) -> int:
        """Layers of the middle block's attention."""
        return _counts(_at(self.transformer_layers_per_block, -1), 1)[0]

    def up_transformer_layers(self, level: int) -> tuple[int, ...]:
        """Layers of each attention of the up block of a level, which has one more than the down block."""
        down, up = self.transformer_layers_per_block, self.reverse_transformer_layers_per_block
        counts = _at(down, level) if up is None else _at(up, self.levels - 1 - level)
        return _counts(counts, self.layers(level) + 1)

    def transformer(self, level: int, *, middle: bool = False) -> TransformerConfig:
        """The settings of the transformers of a level, or of the middle block."""
        heads = self.attention_head_dim if self.num_attention_heads is None else self.num_attention_heads
        return TransformerConfig(
            channels=self.block_out_channels[level],
            heads=_at(heads, level),
            context_dim=_at(self.cross_attention_dim, level),
            groups=self.norm_num_groups,
            linear_projection=self.use_linear_projection,
            only_cross_attention=not middle and _at(self.only_cross_attention, level),
            upcast=self.upcast_attention,
        )

    def residual(self, layers: int) -> UNetConfig:
        """The settings of blocks of `layers` residual blocks, in the terms of the plain U-Net."""
        return UNetConfig(
            block_out_channels=self.block_out_channels,
            layers_per_block=layers,
            downsample_padding=self.downsample_padding,
            dropout=self.dropout,
            act_fn=self.act_fn,
            norm_num_groups=self.norm_num_groups,
            norm_eps=self.norm_eps,
            resnet_time_scale_shift=self.resnet_time_scale_shift,
        )

    def _check_levels(self) -> None:
        """Every list has an item for each level, and each level's channels divide into groups and heads."""
        for key in PER_LEVEL_KEYS:
            value = getattr(self, key)
            if isinstance(value, tuple) and len(value) != self.levels:
                raise CheckpointError(
                    f"{key} = {abbreviate(to_lists(value))} has {len(value)} items, but block_out_channels has "
                    f"{self.levels}"
                )
        for level, channels in enumerate(self.block_out_channels):
            if channels % self.norm_num_groups:
                raise CheckpointError(
                    f"block_out_channels holds {channels}, not a multiple of norm_num_groups = {self.norm_num_groups}"
                )
            if (heads := self.transformer(level).heads) > channels:
                raise CheckpointError(
                    f"attention_head_dim holds {heads} heads, over the {channels} channels of a level"
                )
            self._check_layer_counts(level)
        total = sum(sum(self.transformer_layers(k)) + sum(self.up_transformer_layers(k)) for k in range(self.levels))
        if total > MAX_LAYERS_IN_ALL:
            raise CheckpointError(
                f"transformer_layers_per_block = {abbreviate(to_lists(self.transformer_layers_per_block))}: that is "
                f"{total} layers in all (allowed: {MAX_LAYERS_IN_ALL})"
            )

    def _check_layer_counts(self, level: int) -> None:
        down, up = self.transformer_layers(level), self.up_transformer_layers(level)
        nested = isinstance(_at(self.transformer_layers_per_block, level), tuple)
        if nested and self.reverse_transformer_layers_per_block is None:
            raise CheckpointError(
                "reverse_transformer_layers_per_block = None, but transformer_layers_per_block holds lists"
            )
        layers = self.layers(level)
        for key, counts, least in (("", down, layers), ("reverse_", up, layers + 1)):
            if len(counts) < least:
                raise CheckpointError(
                    f"{key}transformer_layers_per_block holds {abbreviate(list(counts))}, under the {least} attentions "
                    "of a block"
                )

    def _check_embeddings(self) -> None:
        """Embeddings that need a second key have it."""
        projected = self.class_embed_type == "projection" or self.addition_embed_type == "text_time"
        if projected and self.projection_class_embeddings_input_dim is None:
            key = "class_embed_type" if self.class_embed_type == "projection" else "addition_embed_type"
            raise CheckpointError(
                f"projection_class_embeddings_input_dim = None, but {key} = {getattr(self, key)!r} needs a number"
            )
        if self.addition_embed_type == "text_time" and self.addition_time_embed_dim is None:
            raise CheckpointError(
                "addition_time_embed_dim = None, but addition_embed_type = 'text_time' needs a number"
            )


def _at(value: Any, level: int) -> Any:
    """The value for a level: an item of a list, or the value for all levels."""
    return value[level] if isinstance(value, tuple) else value


def _counts(value: int | tuple[int, ...], attentions: int) -> tuple[int, ...]:
    """Layers of each of the attentions of a block; a list may be longer than its block, as in diffusers."""
    return value[:attentions] if isinstance(value, tuple) else (value,) * attentions
