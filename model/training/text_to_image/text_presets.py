"""The shapes of text-to-image models to train: U-Net, text encoder and autoencoder.

The autoencoder makes one latent of 4×4 pixels; the U-Net has three resolutions and reads the text at the lower two.
"""

from __future__ import annotations

from dataclasses import dataclass

from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig
from denoised.model.networks.text_encoder.text_encoder_config import TextEncoderConfig
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig

LATENT_CHANNELS = 4
HEAD_WIDTH = 32  # channels of an attention head


@dataclass(frozen=True)
class TextPreset:
    """The widths of the three networks.

    unet: channels of each level of the U-Net, the highest resolution first.
    text: channels of the text encoder.
    text_layers: transformer layers of the text encoder.
    autoencoder: channels of each level of the autoencoder; each but the last halves height and width.
    groups: of the norms of U-Net and autoencoder.
    """

    unet: tuple[int, ...]
    text: int
    text_layers: int
    autoencoder: tuple[int, ...]
    groups: int


#                      unet            text layers autoencoder   groups
TEXT_PRESETS = {
    "tiny":   TextPreset((8, 16, 16),     16, 1, (8, 8, 8),      4),
    "small":  TextPreset((64, 128, 192), 128, 3, (32, 32, 64),  32),
    "medium": TextPreset((96, 160, 224), 128, 3, (32, 32, 64),  32),
}  # fmt: skip


def text_unet_config(preset: TextPreset, side: int) -> TextUNetConfig:
    """The U-Net on latents of side × side.

    side: a multiple of 4.
    """
    return TextUNetConfig(
        sample_size=side,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=preset.unet,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=preset.text,
        attention_head_dim=tuple(max(1, width // HEAD_WIDTH) for width in preset.unet),
        norm_num_groups=preset.groups,
    )


def text_encoder_config(preset: TextPreset, vocabulary_size: int, length: int) -> TextEncoderConfig:
    """The text encoder on a vocabulary whose last token is the end token.

    length: of a framed sequence.
    """
    return TextEncoderConfig(
        vocab_size=vocabulary_size,
        hidden_size=preset.text,
        intermediate_size=4 * preset.text,
        projection_dim=preset.text,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=max(1, preset.text // HEAD_WIDTH),
        max_position_embeddings=length,
        eos_token_id=vocabulary_size - 1,
    )


def autoencoder_config(preset: TextPreset, side: int) -> AutoencoderConfig:
    """The autoencoder on pictures of side × side pixels."""
    levels = len(preset.autoencoder)
    return AutoencoderConfig(
        block_out_channels=preset.autoencoder,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=preset.groups,
        sample_size=side,
        scaling_factor=1.0,
        force_upcast=False,
    )
